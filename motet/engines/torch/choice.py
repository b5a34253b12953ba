"""The state of one choice of a request: its streams, what they share, what may come next, and its rows in a step."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from motet.composers.plan import DiscriminatorRule, Plan, judged_tokens
from motet.composers.timeline import Timeline
from motet.engines.base import FinishReason, GenerationRequest, Matcher, common_width, ends_of
from motet.engines.torch.cache import Slot
from motet.engines.torch.model import Member


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream of a choice: its member, its own context, and its slot once admitted.

    `judged`: how many tokens at the end of its context the plan's rule must know the log-probs of.
    """

    member: Member
    context: list[int]
    slot: Slot | None = None
    judged: int = 0

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return len(self.slot.tokens) if self.slot else 0

    @property
    def missing(self) -> int:
        """Context tokens still to be computed before the last one, which is fed together with all streams."""
        return max(0, len(self.context) - 1 - self.computed)

    @property
    def reusable(self) -> int:
        """Tokens that another stream's slot may spare this one. A judged token is computed whatever is cached: keys and
        values do not tell its log-prob."""
        return len(self.context) - 1 - self.judged

    def judged_rows(self, count: int) -> int:
        """How many of the next `count` tokens yield the distribution of a judged one."""
        end = min(self.computed + count, len(self.context) - 1)
        return max(0, end - max(self.computed, self.reusable))


@dataclass(slots=True, eq=False)
class ChoiceGroup:
    """The choices of one submitted request; its identity, since equal requests may run side by side."""

    request: GenerationRequest
    choices: list[Choice]

    @property
    def finished(self) -> bool:
        return all(choice.finished for choice in self.choices)


def initial_state(plan: Plan, streams: Sequence[StreamState]) -> list[float]:
    """The state of a rule (see `cores.rule_scores`) before anything is computed: GeDi's sums, to which the judged
    tokens of the prompt come while it is read, and the number of those tokens."""
    if not isinstance(plan.rule, DiscriminatorRule):
        return [0.0, 0.0, 0.0]
    _, wanted, unwanted = streams
    wanted.judged = unwanted.judged = judged_tokens(wanted.context, unwanted.context)
    return [0.0, 0.0, float(wanted.judged)]


def choices_of(request: GenerationRequest, members: Sequence[Member]) -> ChoiceGroup:
    """The `n` choices of a request; `members[k]` runs stream k."""
    group = ChoiceGroup(request, [])
    group.choices += [Choice(group, index, members) for index in range(request.n)]
    return group


class Choice:
    """One sequence being scored or generated.

    `shared` are the tokens appended to every stream: first the forced ones, then those generated. A *position* is an
    index into `shared`; `position` is the next one whose distribution has not been reported.
    """

    def __init__(self, group: ChoiceGroup, index: int, members: Sequence[Member]) -> None:
        request = group.request
        self.group = group
        self.index = index
        self.plan = request.plan
        self.timeline = Timeline(request.plan)
        self.sampling = request.sampling
        self.streams = [
            StreamState(member, list(context)) for member, context in zip(members, request.contexts, strict=True)
        ]
        plan = group.request.plan
        infos = {stream.model: member.info for stream, member in zip(plan.streams, members, strict=True)}
        self.ends = ends_of(plan, infos)
        self.vocab_size = common_width(plan, infos)
        self.eos_token_ids = () if request.sampling.ignore_eos else self.ends
        self.shared = list(request.forced)
        self.num_forced = len(request.forced)
        self.position = 0
        self.counts: Counter[int] = Counter()  # of generated tokens
        self.rule_state = initial_state(plan, self.streams)  # what the plan's rule has gathered so far
        self.finished = False
        self._random = random.Random(None if request.sampling.seed is None else f"{request.sampling.seed}/{index}")
        self.cached_tokens = 0
        self._created = time.perf_counter()
        self._admitted: float | None = None

    def admitted(self) -> None:
        self._admitted = time.perf_counter()

    @property
    def queued_seconds(self) -> float:
        """Between arrival and admission; up to now while it waits."""
        return (self._admitted or time.perf_counter()) - self._created

    @cached_property
    def matcher(self) -> Matcher | None:
        """Follows the answer through the request's grammar."""
        grammar = self.sampling.grammar
        return None if grammar is None else grammar.start(self.ends)

    @property
    def num_generated(self) -> int:
        return len(self.shared) - self.num_forced

    @property
    def generated(self) -> list[int]:
        return self.shared[self.num_forced :]

    @property
    def seen(self) -> set[int]:
        """Tokens of the base's context and all that followed."""
        return {*self.streams[0].context, *self.shared}

    def written(self, position: int) -> list[int]:
        """The tokens before `position` that count as written by the composition: not those of a scored prompt."""
        return self.shared[self.group.request.num_prompt_forced : position]

    @property
    def waiting_positions(self) -> int:
        """Positions that can be computed now: the forced tokens left, and one more if it may be generated."""
        return len(self.shared) + (self.num_generated < self.sampling.max_tokens) - self.position

    @property
    def is_decoding(self) -> bool:
        """Whether the next step only appends one token to each stream."""
        return self.position > 0 and self.waiting_positions == 1

    def inputs(self, stream: StreamState, count: int) -> list[int]:
        """The next `count` tokens of a stream that are not in its slot."""
        start = stream.computed
        length = len(stream.context)
        own = stream.context[start : start + count] if start < length else []
        rest = max(0, start - length)
        return own + self.shared[rest : rest + count - len(own)]

    def reserved(self, stream: StreamState) -> int:
        """The most tokens that the stream's slot can come to hold."""
        return len(stream.context) + self.num_forced + self.sampling.max_tokens

    def uniform(self) -> float:
        """The next draw in (0, 1] of this choice: its own, whatever else is in the batch."""
        return 1.0 - self._random.random()

    def append(self, token: int) -> None:
        self.shared.append(token)
        self.counts[token] += 1

    def finish_reason(self) -> FinishReason | None:
        """Why the choice ends after the last reported position, or None."""
        if self.position < self.num_forced or (self.position == self.num_forced and self.sampling.max_tokens > 0):
            return None
        if self.num_generated and self._stops(self.shared[-1]):
            return "stop"
        return "length" if self.num_generated >= self.sampling.max_tokens else None

    def _stops(self, token: int) -> bool:
        if self.num_generated < self.sampling.min_tokens:
            return False
        return token in self.eos_token_ids or token in self.sampling.stop_token_ids


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """One position of one choice (see `decoding.StepRow`): `streams[k]` is the row of stream k in the step's logits."""

    choice: Choice
    position: int
    streams: tuple[int, ...]

    @property
    def answer(self) -> Choice:
        return self.choice

    @property
    def plan(self) -> Plan:
        return self.choice.timeline.at(lambda: self.written)

    @property
    def is_drawn(self) -> bool:
        return self.position >= self.choice.num_forced

    @property
    def forced(self) -> int:
        return -1 if self.is_drawn else self.choice.shared[self.position]

    @property
    def written(self) -> list[int]:
        return self.choice.written(self.position)

    @property
    def matcher(self) -> Matcher | None:
        """Of a drawn token."""
        return self.choice.matcher if self.is_drawn else None
