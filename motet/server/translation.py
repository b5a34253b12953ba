"""Streams whose models have other tokens than the base: what they read of prompts in ids, and what is not told of
them."""

from __future__ import annotations

from collections.abc import Sequence

from motet.composers.plan import Plan, Stream
from motet.server.http.errors import ApiError, invalid


def own_ids(stream: Stream, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """A prompt of the base's token ids as the stream reads it.

    Raises:
        ApiError: 400, ids that the base does not have.
    """
    if stream.tokens is None:
        return tokens
    width = len(stream.tokens.ids)
    unknown = next((token for token in tokens if not 0 <= token < width), None)
    if unknown is not None:
        raise invalid(f"prompt: token id {unknown} is not in the vocabulary (0 to {width - 1}).", "prompt")
    return translated(stream, tokens)


def translated(stream: Stream, tokens: Sequence[int]) -> tuple[int, ...]:
    """The base's tokens as the stream reads them."""
    return tuple(tokens if stream.tokens is None else stream.tokens.read(tokens))


def check_scorable(plan: Plan, param: str) -> None:
    """
    Raises:
        ApiError: 400, a text is to be scored by a member that has other tokens: it would be another text's score.
    """
    other = next((stream for stream in plan.streams if stream.tokens is not None and not stream.tokens.is_exact), None)
    if other is None:
        return
    said = "is composed approximately, since it has other tokens than the base (vocab: map): texts are not scored by it"
    raise ApiError(
        400,
        f"Role {other.role!r}: {other.model!r} {said}. Their log-probabilities under the base alone are exact.",
        param=param,
        code="approximate_vocabulary",
        public="This model does not score texts: it is composed approximately.",
    )
