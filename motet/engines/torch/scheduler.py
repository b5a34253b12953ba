"""Which choices hold memory, and what each of them computes in the next step."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from motet.engines.base import GenerationRequest, RequestTooLarge
from motet.engines.drafts import OFF, Speculation
from motet.engines.torch.choice import Choice
from motet.engines.torch.memory import Memory, Places
from motet.engines.torch.soft_prompts import Model, members_of
from motet.engines.torch.stream import StreamState
from motet.engines.torch.tempo import LEAST_CHUNK, Allowance, Tempo
from motet.engines.torch.work import Work, next_work

log = logging.getLogger(__name__)

ROW_BYTES = 64 << 20  # float32 distributions that scored text may take in one step, for each of its streams
FIRST_COME = 0.25  # of what a step may read of prompts: for the oldest, while shorter ones go before it


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of the embedded engine.

    At most `prefill_chunk` tokens per model and step are spent on prompts and scored text while others decode,
    `idle_prefill_chunk` while nobody does; and no more than make a step `stretch` times as long as without them, or
    `idle_stretch` times as long as one of a single row (see `tempo`).
    `speculation` is that of requests that say nothing of it; `adapts`: guesses are made where they are measured to pay,
    else always.
    """

    kv_cache_bytes: int = 1 << 30
    max_running: int = 64
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 512
    stretch: float = 1.65  # twice is promised
    idle_stretch: float = 4.0
    speculation: Speculation = OFF
    adapts: bool = True


class Scheduler:
    """First come, first served, by memory."""

    def __init__(self, models: Mapping[str, Model], settings: EngineSettings) -> None:
        self.models = models
        self.members = members = members_of(models)
        self.settings = settings
        self._memory = Memory(members, settings.kv_cache_bytes, settings.max_running)
        self.waiting: deque[Choice] = deque()
        self.running: list[Choice] = []
        widest = max((member.vocab_size for member in members.values()), default=1)
        self.max_rows = max(16, ROW_BYTES // (4 * widest))
        self.tempo = Tempo(members, settings.stretch, settings.idle_stretch)
        self.is_measuring = False  # whether the step that was planned last is to tell what an ordinary one takes
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.num_preemptions = 0

    def check(self, request: GenerationRequest) -> int:
        """KV bytes that one choice may come to need over all its streams.

        Raises:
            RequestTooLarge: a stream is longer than its model reads, or the choice alone exceeds the budget.
        """
        total = len(request.forced) + request.sampling.max_tokens
        forced = [
            len(request.forced if stream.tokens is None else stream.tokens.read(request.forced))
            for stream in request.plan.readers
        ]
        read = list(zip(request.plan.readers, request.contexts, strict=False))  # early exits take no keys and values
        for (stream, context), scored in zip(read, forced, strict=True):
            limit = self.models[stream.model].info.max_model_len
            length = len(context) + scored + request.sampling.max_tokens
            if length > limit:
                raise RequestTooLarge(
                    f"{length} tokens are needed for {stream.role!r} (model {stream.model!r}): {len(context)} of its "
                    f"prompt, {scored} to score and {request.sampling.max_tokens} to generate; "
                    f"its context holds {limit}"
                )
        models = [self.models[stream.model] for stream, _ in read]
        contexts = [
            (model.member.name, len(model.prefix) + len(context))
            for model, (_, context) in zip(models, read, strict=True)
        ]
        nbytes = self._memory.nbytes(Places(self._memory.places(contexts, total, total)))
        if nbytes > self.settings.kv_cache_bytes:
            raise RequestTooLarge(
                f"{nbytes:,} bytes of key / value cache are needed by one choice of {len(read)} streams; "
                f"the engine has {self.settings.kv_cache_bytes:,}"
            )
        return nbytes

    def use(self, models: Mapping[str, Model]) -> None:
        """Other models from now on; what runs or waits reads none that is missing."""
        self.models = models
        self.members = members = members_of(models)
        self._memory.use(members)
        self.tempo.use(members)

    @property
    def choices(self) -> list[Choice]:
        """All that run or wait."""
        return [*self.running, *self.waiting]

    def add(self, choice: Choice) -> None:
        self.waiting.append(choice)

    def admit(self) -> list[Choice]:
        """Gives longer slots to the running choices that need them, then moves waiting ones to running while they fit,
        in order; a sibling waits until it can copy the first's prompt, and lets others pass.

        Returns:
            A choice that is lost, since the machine has no memory for its slots; or since it was not checked and does
            not fit into an empty engine.
        """
        for choice in list(self.running):
            try:
                self._grow(choice)
            except (RuntimeError, MemoryError):
                return [_without_memory(choice)]
        for choice in list(self.waiting):
            if len(self.running) >= self.settings.max_running:
                break
            if self._shares_unfinished_prompt(choice):
                continue
            try:
                if not self._memory.make_room(Places(self._places(choice))):
                    return [] if self.running else [choice]
            except (RuntimeError, MemoryError):
                return [_without_memory(choice)]
            self.waiting.remove(choice)
            self._start(choice)
        return []

    def _places(self, choice: Choice) -> list[tuple[str, int]]:
        """Model and length of the slot of each stream: with room for what is written, and the next token."""
        written = len(choice.shared)  # which a stream may read as more tokens
        most = choice.num_forced + choice.sampling.max_tokens
        contexts = [(stream.member.name, stream.length(written) - written) for stream in choice.streams]
        return self._memory.places(contexts, written + 1, most)

    def _start(self, choice: Choice) -> None:
        again = choice.is_admitted
        for stream, (_, length) in zip(choice.streams, self._places(choice), strict=True):
            tokens = choice.tokens(stream)
            reuse = len(tokens) - 1 - stream.judged
            salt = choice.group.request.cache_salt
            stream.slot = stream.member.cache.acquire(tokens, length, reuse, salt, stream.adapter)
            if not again:
                self.prefix_queries += reuse
                self.prefix_hits += stream.computed
        choice.admitted()
        self.running.append(choice)
        self.running.sort(key=_age)

    def _grow(self, choice: Choice) -> None:
        """Longer slots for the streams of a running choice that have filled theirs; the youngest choices give up their
        own where memory is short, to begin anew when there is some."""
        if choice not in self.running or not any(_is_full(choice, stream) for stream in choice.streams):
            return
        longer = [
            (stream.slot, place)
            for stream, place in zip(choice.streams, self._places(choice), strict=True)
            if stream.slot is not None and place[1] > stream.slot.reserved
        ]
        while not self._memory.make_room(Places(place for _, place in longer)):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is choice:
                return
        for slot, (name, length) in longer:
            self.members[name].cache.move(slot, length)

    def _preempt(self, choice: Choice) -> None:
        """Back to the head of the queue, without slots."""
        self._release(choice)
        choice.preempted()
        self.waiting.appendleft(choice)
        self.num_preemptions += 1

    def _shares_unfinished_prompt(self, choice: Choice) -> bool:
        return choice.index > 0 and any(other.position == 0 for other in self.running if other.group is choice.group)

    def schedule(self) -> list[Work]:
        """The next step: every decoding choice by one token, and prompts or scored text by a chunk that makes it hardly
        longer than a step without."""
        self.tempo.observe()
        decoding: list[Choice] = []
        reading: list[Choice] = []
        for choice in self.running:
            (decoding if choice.is_decoding else reading).append(choice)
        decoding.sort(key=_base_slot)  # so that the rows of a stream are consecutive and need no gather
        work = [next_work(choice) for choice in decoding]
        parts = [pair for item in work for pair in zip(item.choice.streams, item.counts, strict=True) if pair[1]]
        rows = Counter(stream.member.name for stream, _ in parts)
        read: list[Work] = []
        self.is_measuring = False
        if reading:
            limit = self.settings.prefill_chunk if decoding else self.settings.idle_prefill_chunk
            models = {stream.member.name for choice in reading for stream in choice.streams}
            allowance = self.tempo.allowance(limit, self.max_rows, rows, models)
            self.is_measuring = allowance is None
            read = [] if allowance is None else _chunks(reading, allowance)
        singles = Counter(stream.member.name for stream, count in parts if count == 1)
        blocks = [(stream, count) for stream, count in parts if count > 1]
        blocks += [pair for item in read for pair in zip(item.choice.streams, item.counts, strict=True)]
        self.tempo.planned(singles, blocks)
        return work + read

    def remove(self, choice: Choice, *, failed: bool = False) -> None:
        """Frees a choice's slots, running or not. Slots are wiped if it failed, or if no distribution of it was seen
        yet: what they hold is not known to be sound."""
        choice.finished = True
        if choice in self.running:
            self._release(choice, failed=failed)
        elif choice in self.waiting:
            self.waiting.remove(choice)

    def _release(self, choice: Choice, *, failed: bool = False) -> None:
        self.running.remove(choice)
        for stream in choice.streams:
            if stream.slot is not None and stream.member.cache.holds(stream.slot):
                stream.member.cache.release(stream.slot, keep=not failed and choice.position > 0)
            stream.slot = None


def _without_memory(choice: Choice) -> Choice:
    log.exception("no memory for the key / value cache of a request")
    return choice


def _age(choice: Choice) -> float:
    return choice.created


def _is_full(choice: Choice, stream: StreamState) -> bool:
    """Whether the next step's token is the last that the slot has room for, or will be when the stream has read it."""
    return stream.slot is not None and stream.slot.reserved <= stream.length(len(choice.shared))


def _base_slot(choice: Choice) -> int:
    slot = choice.streams[0].slot
    assert slot is not None
    return slot.index


def _chunks(reading: Sequence[Choice], allowance: Allowance) -> list[Work]:
    """What the choices that read, given as they came, do in a step: the shortest rest first, so that no short prompt
    waits behind a long one, but always a part for the first come, so that no long one waits for ever."""
    order = sorted(reading, key=_rest)
    shorter = order.index(reading[0])
    work: list[Work] = []
    kept = allowance.split(FIRST_COME) if shorter else None
    for place, choice in enumerate(order):
        if place == shorter and kept is not None:
            allowance.join(kept)
        least = LEAST_CHUNK if place == 0 else 1 if place == shorter else 0
        item = _chunk(choice, allowance, least)
        if item is not None:
            work.append(item)
            allowance.spend(choice.streams, item.counts, item.rows)
    return work


def _rest(choice: Choice) -> int:
    """Tokens that the choice still has to read over all its streams."""
    return sum(stream.missing(choice.position) + choice.waiting_positions for stream in choice.streams)


def _chunk(choice: Choice, allowance: Allowance, least: int) -> Work | None:
    """As much of a choice's prompt and scored text as the allowance of this step has for it, or `least` tokens."""
    streams = choice.streams
    wanted = max(stream.missing(choice.position) for stream in streams) + choice.waiting_positions
    shares = [allowance.share(stream, streams, wanted, least) for stream in streams]
    room = min(share - stream.missing(choice.position) for share, stream in zip(shares, streams, strict=True))
    positions = min(choice.waiting_positions, room, -(-allowance.rows // choice.rows_per_position))
    positions = min(positions, 1) if choice.is_respelled else positions  # the rows of a stream follow one another
    if positions >= 1:
        counts = tuple(stream.missing(choice.position) + positions for stream in streams)
    else:
        positions = 0
        counts = tuple(
            min(stream.missing(choice.position), share) for share, stream in zip(shares, streams, strict=True)
        )
    return Work(choice, counts, positions) if any(counts) else None
