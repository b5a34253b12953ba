"""Key tokens of a prompt, those that its model finds least likely, and where they are read once more (SH2, Kai et al.
2024, arXiv:2401.05930)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from motet.server.dialogue.conversation import Turn

DIGITS = 4  # of log-probs that are compared: what lies behind them changes with the batch
ROUNDING = 1e-9  # 0.29 · 100 is 28.999999999999996


@dataclass(frozen=True)
class Highlights:
    """What a stream ponders. `ids` are scored: the prompt, or the last user message; `logprobs` are those of all but
    the first. `places` of key tokens in `ids`, ascending, and their `text`: none before it is scored.

    `is_own`: it is the composition's prompt, not the request's.
    """

    model: str
    share: float
    ids: tuple[int, ...]
    is_own: bool = False
    logprobs: tuple[float, ...] = ()
    places: tuple[int, ...] = ()
    text: str = ""


def least_likely(
    ids: Sequence[int], logprobs: Sequence[float], share: float, special: Collection[int]
) -> tuple[int, ...]:
    """Places of the `share` of tokens with the lowest log-probs, ascending; of equal ones the first.

    Args:
        logprobs: one for each token but the first, which nothing predicts.
        special: ids that are never key tokens.
    """
    places = [place for place in range(1, len(ids)) if ids[place] not in special]
    count = max(1, int(share * len(places) + ROUNDING))
    lowest = sorted(places, key=lambda place: (round(logprobs[place - 1], DIGITS), place))
    return tuple(sorted(lowest[:count]))


def last_question(turns: Sequence[Turn]) -> int | None:
    """The place of the last user message."""
    return next((place for place in reversed(range(len(turns))) if turns[place]["role"] == "user"), None)


def with_epilogue(said: str, keys: str) -> str:
    """A message that is followed by its key tokens."""
    return f"{said}\nPondering: {keys}"


def preface(keys: str) -> str:
    """What stands before a text whose key tokens these are."""
    return f"Pondering: {keys}\n\nContext:"
