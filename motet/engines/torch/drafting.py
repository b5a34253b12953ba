"""One choice's guesses in a step, and how a stream makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor

from motet.composers.plan import Plan, Stream
from motet.composers.rows import compose_rows
from motet.composers.rules import RoutedRule
from motet.engines.decoding import Answer, decode_rows
from motet.engines.drafts import NGRAM
from motet.engines.torch.cache import Slot
from motet.engines.torch.choice import Choice, Round
from motet.engines.torch.model import ModelWork
from motet.engines.torch.repeats import LENGTHS
from motet.engines.torch.rows import Ahead
from motet.engines.torch.step import ints
from motet.engines.torch.stream import StreamState
from motet.engines.torch.work import Work
from motet.kernels.decode import Kernels, compose_restricted, decode
from motet.kernels.logits import Logits
from motet.kernels.proposals import warped
from motet.kernels.reference import inverse_cdf


@dataclass(slots=True, eq=False)
class Drafting:
    """A choice that guesses in this step.

    Attributes:
        work: what it would do without.
        most: guesses that it may make.
        pending: the guess that would be next, None where there is none.
        sureness: how sure (0 to 1) the draft was of each guess, and at last of the pending one.
        by_ratio: whether the guesses are judged by the ratio of probabilities.
        is_over: whether the last guess would end the answer: nothing stands behind it.
        ready: guesses that the text itself has made, since it repeats a run of `run` tokens.
        reach: how likely it is that all guesses are right, the pending one too.
        start: how many shared tokens there were.
    """

    work: Work
    round: Round
    most: int
    start: int
    pending: int | None = None
    sureness: list[float] = field(default_factory=list[float])
    by_ratio: bool = False
    is_over: bool = False
    ready: list[int] = field(default_factory=list[int])
    run: int = 0
    reach: float = 1.0

    @property
    def choice(self) -> Choice:
        return self.work.choice

    @property
    def draft(self) -> int | str:
        """The number of the stream that drafts, or `NGRAM`."""
        return NGRAM if self.round.stream is None else self.round.stream

    @property
    def guesses(self) -> list[int]:
        return self.round.guesses

    @property
    def stream(self) -> StreamState:
        """The one that drafts."""
        assert self.round.stream is not None
        return self.choice.streams[self.round.stream]

    @property
    def slot(self) -> Slot:
        assert self.stream.slot is not None
        return self.stream.slot

    @property
    def gate_is_shut(self) -> bool | None:
        """Whether the base, which drafts, writes the next token itself: its gate says so beforehand. None where
        nothing is known of that: another stream drafts, or the composed distribution is none of the two."""
        choice = self.choice
        rule = choice.timeline.at(lambda: choice.written(len(choice.text))).rule
        routes = isinstance(rule, RoutedRule) and rule.threshold is not None and self.round.stream == 0
        if not routes or choice.plan.streams[0].temperature != 1.0 or not self.round.readings:
            return None
        assert isinstance(rule, RoutedRule)
        return rule.writer(float(self.round.readings[-1])) == 0

    def drafts_behind(self, guesses: int) -> bool:
        """Whether the drafting stream runs behind so many guesses: its own row there is a term of the composition, but
        one of rougher weights would only be for another guess."""
        return not self.round.is_rough or guesses < self.most

    @property
    def may_go_on(self) -> bool:
        return self.pending is not None and len(self.guesses) < self.most

    @property
    def verifying(self) -> Work:
        """The block that verifies the guesses: the drafting stream has its rows already, unless they are rough."""
        positions = len(self.guesses) + (not self.is_over)
        counts = tuple(0 if self.round.has_rows_of(k) else positions for k in range(len(self.choice.streams)))
        return Work(self.choice, counts, positions)

    def propose(self, token: int | None, sureness: float) -> None:
        """The guess that would be next; behind an end there is nothing to guess."""
        self.pending = None if token is None or self._ends(token) else token
        self.sureness.append(sureness)

    def _ends(self, token: int) -> bool:
        return token in self.choice.eos_token_ids or token in self.choice.sampling.stop_token_ids

    def propose_from(self, probs: Tensor, uniform: float) -> None:
        """The guess that would be next, drawn from these (V,) probabilities. Whether it will be made must not depend on
        which it is, else answers would lean to the tokens that are: an end is guessed as any other token, and the draft
        is as sure as of its most likely token."""
        most = float(probs.max())
        if math.isfinite(most):
            self.pending = int(inverse_cdf(probs[None], probs.new_tensor([uniform])))
            self.sureness.append(most)
            self.round.probs.append(probs)

    def propose_ready(self) -> None:
        """The next of the text's own guesses; the longer the run that they repeat, the surer."""
        self.propose(self.ready.pop(0) if self.ready else None, self.run / (LENGTHS[0] + 1))

    def take(self) -> None:
        """The pending guess will be verified."""
        assert self.pending is not None
        self.guesses.append(self.pending)
        self.is_over = self._ends(self.pending)
        self.pending = None

    def outcome(self) -> list[bool]:
        """Of every guess that the step has told of, whether it was right: also of the one that was not thought worth
        its price, as the last."""
        drawn = self.choice.shared[self.start :]
        made = self.guesses if self.pending is None else [*self.guesses, self.pending]
        found: list[bool] = []
        for guess, token in zip(made, drawn, strict=False):
            found.append(guess == token)
            if guess != token:
                break
        return found


@dataclass(frozen=True, slots=True)
class GuessRow:
    """The position behind a choice's last guess (see `decoding.StepRow`), as the drafting stream alone sees it."""

    choice: Choice
    plan: Plan
    forced: int = -1
    is_drawn: bool = True

    @property
    def answer(self) -> Answer:
        guesses = self.choice.guesses
        return Ahead(self.choice, guesses) if guesses else self.choice

    @property
    def written(self) -> list[int]:
        return self.choice.written(len(self.choice.text))


def compute(items: Sequence[Drafting]) -> None:
    """One forward of the streams that draft, all of one member: the rows behind their last tokens."""
    placed = sorted(((item.slot.index, item) for item in items), key=lambda pair: pair[0])
    work = [
        ModelWork(index, item.stream.computed, item.choice.inputs(item.stream, 1), 1, adapter=item.stream.adapter)
        for index, item in placed
    ]
    member = items[0].stream.member
    logits = member.forward(work, is_guess=items[0].round.is_rough)
    for row, ((_, item), done) in enumerate(zip(placed, work, strict=True)):
        item.slot.tokens += done.tokens
        item.round.logits.append(logits[row : row + 1])
        if member.readings is not None:
            item.round.readings.append(member.readings[row : row + 1])


def draw(items: Sequence[Drafting], kernels: Kernels) -> None:
    """Draws the next guess of choices over one vocabulary from their streams' last rows: by the requests' parameters,
    masks, grammars and random numbers, as the composition will be."""
    width = items[0].choice.vocab_size
    logits = Logits([item.round.logits[-1][:, :width] for item in items])
    rows = [GuessRow(item.choice, _alone(item)) for item in items]
    plan = compose_rows([row.plan for row in rows], [[row] for row in range(len(rows))], logits.like())
    wanted = decode_rows(plan, logits, rows, [item.choice.matcher for item in items])
    wanted = replace(wanted, top=(), named=(), trace=())
    drawn = decode(kernels, logits, wanted)
    for item, token, logprob in zip(items, ints(drawn.token), cast("list[float]", drawn.logprob.tolist()), strict=True):
        shut = item.gate_is_shut
        if not item.by_ratio:
            possible = math.isfinite(logprob) and shut is not False
            item.propose(token if possible else None, 1.0 if shut and possible else math.exp(logprob))
    by_ratio = [row for row, item in enumerate(items) if item.by_ratio and item.gate_is_shut is not False]
    if by_ratio:
        scores = wanted.penalised(compose_restricted(kernels, logits, wanted).logprobs)
        for row, probs in zip(by_ratio, warped(scores[by_ratio], wanted.sampling.select(by_ratio)), strict=True):
            items[row].propose_from(probs, wanted.uniform[row])


def _alone(item: Drafting) -> Plan:
    """The drafting stream by itself, under the composition's rules."""
    assert item.round.stream is not None
    stream = item.choice.plan.streams[item.round.stream]
    return Plan((Stream(stream.role, stream.model),), rules=item.choice.plan.rules)
