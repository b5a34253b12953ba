"""The state of one choice of a request: its streams, what they share, what may come next, and its rows in a step."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from motet.composers.plan import Plan
from motet.composers.rules import DiscriminatorRule, judged_tokens
from motet.composers.timeline import Timeline
from motet.engines.base import GenerationRequest, Matcher, common_width, ends_of
from motet.engines.decoding import AllowedTokens
from motet.engines.drawn import alone, is_drawn, voice_at
from motet.engines.outputs import FinishReason
from motet.engines.torch.repeats import Repeats
from motet.engines.torch.soft_prompts import Model
from motet.engines.torch.stream import StreamState, Translation

MOST_BEHIND = 8  # tokens that a stream which is not drawn stays behind: so many cost little more than one


@dataclass(slots=True, eq=False)
class Round:
    """Tokens guessed ahead of a choice, which its next step verifies.

    Attributes:
        stream: the number of the stream that drafts; None: the text itself does.
        guesses: what may stand behind the choice's last token.
        logits: (1, V) each, raw: what the drafting stream has computed already, behind the last token, the first guess
            and so on.
        readings: (1,) each, what the drafting stream's head says there, where it has one.
        probs: (V,) each, what the guesses were drawn from, where they are judged by the ratio of probabilities.
        is_rough: whether that was computed with the draft's weights of the stream's member, and is no term of the
            composition: the stream verifies, too.
    """

    stream: int | None
    guesses: list[int]
    is_rough: bool = False
    logits: list[Tensor] = field(default_factory=list[Tensor])
    readings: list[Tensor] = field(default_factory=list[Tensor])
    probs: list[Tensor] = field(default_factory=list[Tensor])

    def has_rows_of(self, k: int) -> bool:
        """Whether stream k's rows are computed already."""
        return self.stream == k and not self.is_rough


@dataclass(slots=True, eq=False)
class ChoiceGroup:
    """The choices of one submitted request; its identity, since equal requests may run side by side."""

    request: GenerationRequest
    choices: list[Choice]
    contexts: list[list[int]]  # what each stream reads, the same list for all choices
    allowed: AllowedTokens | None = None

    @property
    def finished(self) -> bool:
        return all(choice.finished for choice in self.choices)


def initial_state(plan: Plan, streams: Sequence[StreamState]) -> list[float]:
    """The state of a rule (see `cores.rule_scores`) before anything is computed: GeDi's sums, to which the judged
    tokens of the prompt come while it is read, and the number of those tokens."""
    if not isinstance(plan.rule, DiscriminatorRule):
        return [0.0, 0.0, 0.0]
    _, wanted, unwanted = streams
    wanted.judged = unwanted.judged = judged_tokens(wanted.prompt, unwanted.prompt)
    return [0.0, 0.0, float(wanted.judged)]


def choices_of(request: GenerationRequest, models: Sequence[Model]) -> ChoiceGroup:
    """The `n` choices of a request; `models[k]` runs stream k."""
    contexts = [[*model.prefix, *context] for model, context in zip(models, request.contexts, strict=True)]
    group = ChoiceGroup(request, [], contexts, AllowedTokens.of(request.sampling))
    group.choices += [Choice(group, index, models) for index in range(request.n)]
    return group


class Choice:
    """One sequence being scored or generated.

    `shared` are the tokens appended to every stream: first the forced ones, then those generated. A *position* is an
    index into `shared`; `position` is the next one whose distribution has not been reported. `is_respelled`: any stream
    may read several tokens in the place of one.
    """

    def __init__(self, group: ChoiceGroup, index: int, models: Sequence[Model]) -> None:
        request = group.request
        self.group = group
        self.index = index
        self.plan = request.plan
        self.sampling = request.sampling
        self.allowed = group.allowed
        self.shared = list(request.forced)
        # an early exit is a row of the base's forward, and no stream here
        self.streams = [
            StreamState(
                model.member,
                context,
                num_virtual=len(model.prefix),
                adapter=model.adapter,
                tokens=stream.tokens,
                is_respelled=stream.tokens is not None and not stream.tokens.has_all,
                translation=None if stream.tokens is None else Translation(stream.tokens, self.shared),
            )
            for stream, model, context in zip(self.plan.readers, models, group.contexts, strict=False)
        ]
        self.is_respelled = any(stream.is_respelled for stream in self.streams)
        self.rule_state = initial_state(self.plan, self.streams)  # what the plan's rule has gathered so far
        self._most_read = [len(model.prefix) + model.info.max_model_len for model in models]
        self.exit_layers = tuple(sorted({layer for own in self.plan.exits for layer in own.layers}))
        self.rows_per_position = 1 + len(self.exit_layers)  # distributions that the base computes
        infos = {stream.model: model.info for stream, model in zip(self.plan.streams, models, strict=True)}
        self.ends = ends_of(self.plan, infos)
        self.vocab_size = common_width(self.plan, infos)
        self.eos_token_ids = () if request.sampling.goes_on else self.ends
        self.num_forced = len(request.forced)
        self.position = 0
        self.counts: Counter[int] = Counter()  # of generated tokens
        self.shares: tuple[float, ...] | None = None  # of adapters, once the prompt is read (`AdaptersRule`)
        self.finished = False
        self.round: Round | None = None
        self.by_member = request.by_member and is_drawn(request)
        self._random = random.Random(None if request.sampling.seed is None else f"{request.sampling.seed}/{index}")
        self._uniforms: list[float] = []
        self.cached_tokens = 0
        self.created = time.perf_counter()
        self.is_admitted = False  # has had slots once
        self.queued_seconds = 0.0  # between arrival and admission

    def admitted(self) -> None:
        """It has its slots; the first time counts."""
        if not self.is_admitted:
            self.is_admitted = True
            self.queued_seconds = time.perf_counter() - self.created
            base = self.streams[0]
            self.cached_tokens = max(0, base.computed - base.num_virtual)

    @cached_property
    def timeline(self) -> Timeline:
        """The plan of each token."""
        return Timeline(self.plan)

    @cached_property
    def matcher(self) -> Matcher | None:
        """Follows the answer through the request's grammar."""
        grammar = self.sampling.grammar
        return None if grammar is None else grammar.start(self.ends)

    @cached_property
    def repeats(self) -> Repeats:
        """What the base's text says of itself."""
        return Repeats()

    @property
    def num_generated(self) -> int:
        return len(self.shared) - self.num_forced

    @property
    def generated(self) -> list[int]:
        return self.shared[self.num_forced :]

    @property
    def seen(self) -> set[int]:
        """Tokens of the base's context and all that followed."""
        return {*self.streams[0].prompt, *self.shared}

    def written(self, position: int) -> list[int]:
        """The tokens before `position` that count as written by the composition: not those of a scored prompt."""
        return self.text[self.num_prompt_forced : position]

    @property
    def num_prompt_forced(self) -> int:
        """How many of the shared tokens are those of a scored prompt."""
        return self.group.request.num_prompt_forced

    @property
    def guesses(self) -> list[int]:
        return self.round.guesses if self.round else []

    @property
    def text(self) -> list[int]:
        """The shared tokens, and those that are guessed to follow."""
        return self.shared + self.guesses if self.guesses else self.shared

    @property
    def waiting_positions(self) -> int:
        """Positions that can be computed now: the forced tokens left, and one more if it may be generated."""
        return len(self.shared) + (self.num_generated < self.sampling.max_tokens) - self.position

    @property
    def is_decoding(self) -> bool:
        """Whether the next step only appends one token to each stream, as its member spells it, or to the drawn one and
        what that has missed."""
        behind = max(stream.missing(self.position) for stream in self.streams)
        caught_up = behind <= (MOST_BEHIND if self.by_member or self.is_respelled else 0)
        return self.position > 0 and self.waiting_positions == 1 and caught_up

    def draw_voice(self) -> int:
        """The stream that the next token is drawn from."""
        return voice_at(self.timeline.at(lambda: self.written(self.position)), self.fresh())

    @cached_property
    def alone(self) -> list[Plan]:
        """The plan of each stream where it is drawn."""
        return [alone(self.plan, k) for k in range(len(self.streams))]

    @property
    def room_ahead(self) -> int:
        """How many tokens may be guessed: all before the last that may be generated, as far as the slots have room."""
        slots = [stream.slot for stream in self.streams if stream.slot is not None]
        room = min(slot.reserved - len(slot.tokens) for slot in slots)
        return min(self.sampling.max_tokens - self.num_generated, room) - 1

    def inputs(self, stream: StreamState, count: int) -> list[int]:
        """The next `count` tokens of a stream that are not in its slot."""
        start = stream.computed
        length = len(stream.context)
        own = stream.context[start : start + count] if start < length else []
        rest = max(0, start - length)
        text = self.text if stream.translation is None else stream.translation.ids(self.guesses)
        return own + text[rest : rest + count - len(own)]

    def tokens(self, stream: StreamState) -> list[int]:
        """What the stream reads before the next position is known; the last of it is fed together with all streams."""
        written = self.shared if stream.translation is None else stream.translation.ids()
        return stream.context + written[: stream.length(self.position) - len(stream.context)]

    def preempted(self) -> None:
        """Its slots are gone: what it has read and written is computed again, but neither reported nor judged twice."""
        for stream in self.streams:
            stream.slot = None
            stream.judged = 0
        if self.position == 0:
            self.rule_state = initial_state(self.plan, self.streams)

    def uniform(self) -> float:
        """The draw in (0, 1] that belongs to the next token: the choice's own, whatever else is in the batch."""
        return self.uniform_at(self.num_generated)

    def uniform_at(self, place: int) -> float:
        """The draw of the generated token number `place`: the same as often as it is asked for."""
        while len(self._uniforms) <= place:
            self._uniforms.append(1.0 - self._random.random())
        return self._uniforms[place]

    @property
    def is_unseeded(self) -> bool:
        """Whether tokens are drawn, and nobody asked that they be the same again."""
        return self.sampling.seed is None and self.sampling.temperature > 0.0

    def fresh(self) -> float:
        """A draw in (0, 1] that belongs to no token: of answers without a seed alone, whose draws need no order."""
        return 1.0 - self._random.random()

    def append(self, token: int) -> None:
        self.shared.append(token)
        self.counts[token] += 1

    def end_round(self) -> None:
        """Forgets the guesses: the streams hold what was computed of the tokens that were taken, but for the last,
        which is fed next."""
        self.round = None
        for stream in self.streams:
            if stream.slot is not None:
                self.cut_back(stream)

    def cut_back(self, stream: StreamState) -> None:
        """Forgets what a stream has computed beyond all shared tokens but the last, which is fed next."""
        assert stream.slot is not None
        del stream.slot.tokens[stream.length(len(self.shared)) - 1 :]

    def finish_reason(self) -> FinishReason | None:
        """Why the choice ends after the last reported position, or None."""
        if self.position < self.num_forced or (self.position == self.num_forced and self.sampling.max_tokens > 0):
            return None
        if self.num_generated and self._is_end(self.shared[-1]):
            return "stop"
        return "length" if self.num_generated >= self.sampling.max_tokens or self._is_out_of_room else None

    @property
    def _is_out_of_room(self) -> bool:
        """Whether a member that reads several tokens in the place of one has no room in its context for the last."""
        pairs = zip(self.streams, self._most_read, strict=False)
        return any(stream.is_respelled and stream.length(len(self.shared)) > most for stream, most in pairs)

    def _is_end(self, token: int) -> bool:
        """Before `min_tokens` no end is drawn, unless a grammar has finished."""
        return token in self.eos_token_ids or token in self.sampling.stop_token_ids
