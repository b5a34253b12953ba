"""Text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.server.choices import Piece
from motet.server.forms.form import extensions, prompt_extensions
from motet.server.forms.logprobs import completion_logprobs
from motet.server.jobs import Display, Job


class CompletionForm:
    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def chunk(self, index: int, piece: Piece, job: Job, show: Display) -> dict[str, Any]:
        return self._choice(index, [piece], job, show)

    def whole(self, index: int, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
        return self._choice(index, pieces, job, show) | prompt_extensions(pieces, job, show)

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _choice(self, index: int, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs(pieces, job, show),
            "finish_reason": pieces[-1].finish if pieces else None,
            "stop_reason": pieces[-1].stop_reason if pieces else None,
        } | extensions(pieces, job, show)

    def _logprobs(self, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any] | None:
        outputs = [o for piece in pieces for o in piece.tokens if show.echo or not o.forced]
        first = job.prompt_ids[0] if show.echo and any(piece.prompt for piece in pieces) else None
        return completion_logprobs(outputs, job, show, first=first, offset=pieces[0].offset)
