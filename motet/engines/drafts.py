"""What may be wished of speculation: who guesses tokens ahead, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from motet.composers.plan import Plan

NGRAM = "ngram"  # as vLLM calls drafts that repeat the text
MOST_GUESSES = 8  # that are verified at once


Acceptance = Literal["coupled", "ratio"]


@dataclass(frozen=True, slots=True)
class Speculation:
    """Guessing tokens ahead, which then are verified together. Answers do not change by it.

    `draft` is the role or the model of one of the plan's streams, or `NGRAM`: the text itself, where it repeats; None
    is whatever pays. At most `tokens` guesses are verified at once; 0 is off. `acceptance`:

    - `coupled`: a guess is right where it is the token that would have been drawn without it, by the same random
      number: seeds keep their answers.
    - `ratio`: the guesses of a stream for an answer that is drawn without a seed are taken as far as that leaves the
      distribution of answers as it is (see `kernels.proposals`), which is more often.

    `wide_only`: only where all streams compute in float32 or wider, where one position and several round so alike that
    answers are the same tokens.
    """

    draft: str | None = None
    tokens: int = MOST_GUESSES
    acceptance: Acceptance = "coupled"
    wide_only: bool = False


OFF = Speculation(tokens=0)
AUTO = Speculation(wide_only=True)


def drafts_of(plan: Plan, name: str | None, *, alone: bool = False) -> Sequence[int | str]:
    """The drafts that a wish leaves, streams by their numbers: the named one, none where the plan does not have it;
    without a name all streams, where there are several or the only one may guess `alone`, and the text itself. None
    where a member reads several tokens in the place of one: where its rows would stand behind guesses is not known
    before."""
    if not has_drafts(plan):
        return []
    if name == NGRAM:
        return [NGRAM]
    able = _able(plan)
    if name is None:
        return [*(able if alone or len(plan.readers) > 1 else ()), NGRAM]
    return [k for k in able if name in (plan.streams[k].role, plan.streams[k].model)][:1]


def draft_names(plan: Plan) -> list[str]:
    """Everything that a wish may call a draft."""
    streams = [plan.streams[k] for k in _able(plan)]
    roles, models = [stream.role for stream in streams], [stream.model for stream in streams]
    return list(dict.fromkeys([*roles, *models, NGRAM]))


def has_drafts(plan: Plan) -> bool:
    """Whether anything may guess ahead in a plan."""
    return all(stream.tokens is None or stream.tokens.has_all for stream in plan.streams)


def _able(plan: Plan) -> list[int]:
    """The streams that can guess: those that read in the base's tokens, but no base that is left early, since its
    guesses would have to be computed to the end with all their layers, and there is nothing left to verify them
    with."""
    own = [k for k, stream in enumerate(plan.readers) if stream.tokens is None]
    return [k for k in own if k > 0 or not plan.exits]
