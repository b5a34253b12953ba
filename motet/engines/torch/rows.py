"""The positions of choices in a step, as rows: those behind the last token, and those behind guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from motet.composers.plan import Plan
from motet.composers.rules import RoutedRule
from motet.composers.timeline import HeadReading, adapted
from motet.engines.base import Matcher, SamplingParams
from motet.engines.decoding import AllowedTokens, Answer
from motet.engines.torch.choice import Choice
from motet.kernels.proposals import Proposal


@dataclass(frozen=True, slots=True)
class Ahead:
    """A choice as it will be if these guesses are right (see `decoding.Answer`)."""

    choice: Choice
    guesses: Sequence[int]

    @property
    def sampling(self) -> SamplingParams:
        return self.choice.sampling

    @property
    def allowed(self) -> AllowedTokens | None:
        return self.choice.allowed

    @property
    def ends(self) -> Sequence[int]:
        return self.choice.ends

    @property
    def eos_token_ids(self) -> Sequence[int]:
        return self.choice.eos_token_ids

    @property
    def num_generated(self) -> int:
        return self.choice.num_generated + len(self.guesses)

    @property
    def generated(self) -> list[int]:
        return [*self.choice.generated, *self.guesses]

    @property
    def counts(self) -> Counter[int]:
        return self.choice.counts + Counter(self.guesses)

    @property
    def seen(self) -> set[int]:
        return {*self.choice.seen, *self.guesses}

    def uniform(self) -> float:
        return self.choice.uniform_at(self.num_generated)


@dataclass(frozen=True)
class ChoiceRow:
    """One position of one choice (see `decoding.StepRow`): `streams[k]` is the row of stream k in the step's logits,
    `reading` what the base's head says there, where the plan has a head. Where the token is drawn from one stream, its
    `voice`, there is only that one. `layers` are those that were chosen for the plan's early exits."""

    choice: Choice
    position: int
    streams: tuple[int, ...]
    reading: HeadReading | None = None
    voice: int | None = None
    layers: tuple[int, ...] = ()

    @property
    def num_ahead(self) -> int:
        """How many guesses stand before this position."""
        return max(0, self.position - len(self.choice.shared))

    @property
    def answer(self) -> Answer:
        ahead = self.num_ahead
        return Ahead(self.choice, self.choice.guesses[:ahead]) if ahead else self.choice

    @property
    def plan(self) -> Plan:
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        """Asked several times in a step."""
        if self.voice is not None:
            return self.choice.alone[self.voice]
        plan = self.choice.timeline.at(lambda: self.written)
        return plan if self.reading is None else adapted(plan, self.reading)

    @property
    def writer(self) -> int | None:
        """The stream that writes the token alone, where the base's head says so."""
        if not isinstance(self.reading, float):
            return None
        rule = self.plan.rule
        return rule.writer(self.reading) if isinstance(rule, RoutedRule) else None

    @property
    def is_drawn(self) -> bool:
        return self.position >= self.choice.num_forced

    @property
    def forced(self) -> int:
        return -1 if self.is_drawn else self.choice.shared[self.position]

    @property
    def assumed(self) -> int | None:
        """The token that later positions of the same step read here: the forced or guessed one."""
        text = self.choice.text
        return text[self.position] if self.position < len(text) else None

    def proposal(self, row: int) -> Proposal | None:
        """The guess for this position where it is judged by the ratio of probabilities; this is row `row` of a step."""
        place, guesses = self.position - len(self.choice.shared), self.choice.guesses
        if self.choice.round is None or not self.choice.round.probs or not 0 <= place < len(guesses):
            return None
        probs = self.choice.round.probs[place]
        return Proposal(row, guesses[place], probs, self.choice.fresh(), self.choice.fresh())

    @property
    def written(self) -> list[int]:
        return self.choice.written(self.position)

    @property
    def matcher(self) -> Matcher | None:
        """Of a drawn token."""
        return self.choice.matcher if self.is_drawn else None
