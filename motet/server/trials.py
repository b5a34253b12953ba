"""Answers on trial: a small model's, held back until it is known whether it is sure of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from motet.composers.confidence import Judge
from motet.engines.outputs import TokenOutput
from motet.server.prepare import Job
from motet.server.text import TextPiece


@dataclass
class Trial:
    """One choice of a job that another may answer anew. `index`: its number among the job's choices.

    Attributes:
        sure: None as long as it is not known.
        num_discarded: tokens that were written and are no part of the answer.
    """

    first: Job
    anew: Job
    judge: Judge
    index: int
    sure: bool | None = None
    num_discarded: int = 0
    _measures: list[float] = field(default_factory=list[float])
    _held: list[TextPiece] = field(default_factory=list[TextPiece])

    @property
    def confidence(self) -> float | None:
        """Of what was judged; None before anything was."""
        return self.judge.confidence(self._measures) if self._measures else None

    @property
    def answerer(self) -> Job:
        return self.anew if self.sure is False else self.first

    def hold(self, piece: TextPiece) -> None:
        self._held.append(piece)

    def weigh(self, output: TokenOutput, *, finished: bool) -> None:
        """The next token of the answer; `finished`: it is the last."""
        if output.confidence is not None and not output.forced:
            self._measures.append(output.confidence)
        self.sure = self.judge.verdict(self._measures, finished=finished)

    def released(self) -> list[TextPiece]:
        """What was held, once: nothing of an answer that is given up."""
        held, self._held = self._held, []
        return held if self.sure else []


def trials_of(jobs: Sequence[Job]) -> dict[int, Trial]:
    """By the choices' numbers in a reply; nothing of jobs that answer as they are."""
    found: dict[int, Trial] = {}
    number = 0
    for job in jobs:
        for index in range(job.request.n):
            if job.escalation is not None:
                found[number] = Trial(job, job.escalation.job, job.escalation.judge, index)
            number += 1
    return found
