"""What an endpoint's answer looks like: choices whole, and choices in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from motet.server.choices import Piece
from motet.server.forms.logprobs import prompt_logprobs, traces
from motet.server.jobs import Display, Job


class Form(Protocol):
    """Chat completion or completion."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice's stream."""
        ...

    def chunk(self, index: int, piece: Piece, job: Job, show: Display) -> dict[str, Any]: ...

    def whole(self, index: int, pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]: ...

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        """What stands beside `choices`; takes it out of the `first` choice."""
        ...


def extensions(pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
    """Fields beyond OpenAI's that a choice or chunk has where they were asked for."""
    fields: dict[str, Any] = {}
    outputs = [output for piece in pieces for output in piece.tokens]
    generated = [output for output in outputs if not output.forced]
    if show.token_ids:
        fields["token_ids"] = [output.token for output in generated]
    if show.trace is not None:
        fields["motet"] = {"trace": traces(generated if not show.echo else outputs, job)}
    return fields


def prompt_extensions(pieces: Sequence[Piece], job: Job, show: Display) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if show.prompt_logprobs is not None:
        forced = [output for piece in pieces for output in piece.tokens if output.forced]
        fields["prompt_logprobs"] = prompt_logprobs(forced, job, show.prompt_logprobs)
    if show.token_ids:
        fields["prompt_token_ids"] = list(job.prompt_ids)
    return fields
