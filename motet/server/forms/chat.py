"""Chat completions: messages and deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.server.choices import Piece
from motet.server.forms.form import extensions, prompt_extensions
from motet.server.forms.logprobs import chat_logprobs
from motet.server.jobs import Display, Job


class ChatForm:
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, piece: Piece, job: Job, show: Display) -> dict[str, Any]:
        return self._choice(index, [piece], job, show) | {"delta": {"content": piece.text} if piece.text else {}}

    def whole(self, index: int, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        prompt = prompt_extensions(pieces, job, show) if index == 0 else {}
        return self._choice(index, pieces, job, show) | {"message": message} | prompt

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        names = ("prompt_logprobs", "prompt_token_ids")
        return {name: first.pop(name) for name in names if name in first}

    def _choice(self, index: int, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
        generated = [output for piece in pieces for output in piece.tokens if not output.forced]
        return {
            "index": index,
            "logprobs": chat_logprobs(generated, job, show),
            "finish_reason": pieces[-1].finish if pieces else None,
            "stop_reason": pieces[-1].stop_reason if pieces else None,
        } | extensions(pieces, job, show)
