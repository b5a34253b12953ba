"""Which choices hold memory, and what each of them computes in the next step."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from motet.engines.base import GenerationRequest, RequestTooLarge
from motet.engines.drafts import OFF, Speculation
from motet.engines.torch.cache import SlotCache
from motet.engines.torch.choice import Choice
from motet.engines.torch.model import Member
from motet.engines.torch.tempo import LEAST_CHUNK, Allowance, Tempo

log = logging.getLogger(__name__)

LENGTH_QUANTUM = 64  # arena lengths are multiples of this
ROW_BYTES = 64 << 20  # float32 distributions that scored text may take in one step, for each of its streams
FIRST_COME = 0.25  # of what a step may read of prompts: for the oldest, while shorter ones go before it
MIN_CAPACITY = 4  # slots that an arena has where the budget allows: idle ones keep prefixes


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


@dataclass(frozen=True, slots=True)
class Work:
    """What one choice does in a step: `counts[k]` tokens of stream k, of which the last `positions` yield rows, and
    those before them that its rule judges. A stream that has drafted has its rows already."""

    choice: Choice
    counts: tuple[int, ...]
    positions: int

    def drafted(self, k: int) -> list[Tensor]:
        """The rows that stream k has computed while it drafted."""
        own = self.choice.round
        return own.logits if own is not None and own.stream == k else []

    @property
    def rows(self) -> int:
        """Distributions of the stream that has the most of them."""
        judged = (stream.judged_rows(count) for stream, count in zip(self.choice.streams, self.counts, strict=True))
        return self.positions + max(judged)


@dataclass(frozen=True, slots=True)
class Need:
    """Slots and tokens per slot that an arena must have."""

    slots: int = 0
    length: int = 0

    def nbytes(self, member: Member) -> int:
        return self.slots * self.length * member.cache.bytes_per_token


def _growth(pair: tuple[SlotCache, Need]) -> int:
    cache, need = pair
    return (need.slots * need.length - cache.capacity * cache.length) * cache.bytes_per_token


def rounded(length: int) -> int:
    return -(-length // LENGTH_QUANTUM) * LENGTH_QUANTUM


class Scheduler:
    """First come, first served, by memory."""

    def __init__(self, members: Mapping[str, Member], settings: EngineSettings) -> None:
        self.members = members
        self.settings = settings
        self.waiting: deque[Choice] = deque()
        self.running: list[Choice] = []
        widest = max((member.vocab_size for member in members.values()), default=1)
        self.max_rows = max(16, ROW_BYTES // (4 * widest))
        self.tempo = Tempo(members, settings.stretch, settings.idle_stretch)
        self.prefix_queries = 0
        self.prefix_hits = 0

    def check(self, request: GenerationRequest) -> int:
        """KV bytes of one choice over all its streams, alone in the engine.

        Raises:
            RequestTooLarge: a stream is longer than its model reads, or the choice alone exceeds the budget.
        """
        needs: dict[str, Need] = {}
        total = len(request.forced) + request.sampling.max_tokens
        for stream, context in zip(request.plan.streams, request.contexts, strict=True):
            member = self.members[stream.model]
            length = len(context) + total
            if length > member.info.max_model_len:
                raise RequestTooLarge(
                    f"{length} tokens are needed for {stream.role!r} (model {stream.model!r}): {len(context)} of its "
                    f"prompt, {len(request.forced)} to score and {request.sampling.max_tokens} to generate; "
                    f"its context holds {member.info.max_model_len}"
                )
            needs[member.name] = _joined(needs.get(member.name, Need()), 1, length)
        nbytes = self._nbytes(needs)
        if nbytes > self.settings.kv_cache_bytes:
            raise RequestTooLarge(
                f"{nbytes:,} bytes of key / value cache are needed by one choice of {len(request.contexts)} streams; "
                f"the engine has {self.settings.kv_cache_bytes:,}"
            )
        return nbytes

    def use(self, members: Mapping[str, Member]) -> None:
        """Other members from now on; what runs or waits reads none that is missing."""
        self.members = members
        self.tempo.use(members)

    @property
    def choices(self) -> list[Choice]:
        """All that run or wait."""
        return [*self.running, *self.waiting]

    def add(self, choice: Choice) -> None:
        self.waiting.append(choice)

    def admit(self) -> list[Choice]:
        """Moves waiting choices to running while they fit, in order; a sibling waits until it can copy the first's
        prompt, and lets others pass.

        Returns:
            The choices that are lost because an arena could not be allocated: the one that asked for it, and those
            whose slots went with the old arena. So is one that was not checked and does not fit into an empty engine.
        """
        for choice in list(self.waiting):
            if len(self.running) >= self.settings.max_running:
                break
            if self._shares_unfinished_prompt(choice):
                continue
            try:
                if not self._make_room(choice):
                    return [] if self.running else [choice]
            except (RuntimeError, MemoryError):
                log.exception("no memory for the key / value cache of a request")
                return [choice, *(other for other in self.running if not _holds_its_slots(other))]
            self.waiting.remove(choice)
            self._start(choice)
        return []

    def _start(self, choice: Choice) -> None:
        for k, stream in enumerate(choice.streams):
            stream.slot = stream.member.cache.acquire(
                stream.context, choice.reserved(stream), stream.reusable, choice.group.request.cache_salt
            )
            self.prefix_queries += stream.reusable
            self.prefix_hits += stream.computed
            if k == 0:
                choice.cached_tokens = stream.computed
        choice.admitted()
        self.running.append(choice)

    def _shares_unfinished_prompt(self, choice: Choice) -> bool:
        return choice.index > 0 and any(other.position == 0 for other in self.running if other.group is choice.group)

    def _make_room(self, choice: Choice) -> bool:
        """Grows or reshapes the arenas for the choice if the budget allows it."""
        exact = self._needs(choice)
        roomy = {
            name: Need(
                max(self.members[name].cache.capacity, _power_of_two(need.slots), MIN_CAPACITY),
                max(self.members[name].cache.length, need.length),
            )
            for name, need in exact.items()
        }
        for needs in (roomy, exact):
            if self._nbytes(needs) <= self.settings.kv_cache_bytes:
                self._resize(needs)
                return True
        return False

    def _nbytes(self, needs: Mapping[str, Need]) -> int:
        return sum(need.nbytes(self.members[name]) for name, need in needs.items())

    def _needs(self, choice: Choice) -> dict[str, Need]:
        needs = {
            name: Need(member.cache.num_active, max((rounded(s.reserved) for s in member.cache.active), default=0))
            for name, member in self.members.items()
        }
        for stream in choice.streams:
            name = stream.member.name
            needs[name] = _joined(needs[name], 1, choice.reserved(stream))
        return needs

    def _resize(self, needs: Mapping[str, Need]) -> None:
        caches = [(self.members[name].cache, need) for name, need in needs.items()]
        # shrink first: the budget holds at every moment
        for cache, need in sorted(caches, key=_growth):
            if (need.slots, need.length) != (cache.capacity, cache.length):
                cache.resize(need.slots, need.length)

    def plan(self) -> list[Work]:
        """The next step: every decoding choice by one token, and prompts or scored text by a chunk that makes it hardly
        longer than a step without."""
        self.tempo.observe()
        # in slot order, so that the rows of a stream are consecutive and need no gather
        decoding = sorted((choice for choice in self.running if choice.is_decoding), key=_base_slot)
        reading = [choice for choice in self.running if not choice.is_decoding]
        rows = Counter(stream.member.name for choice in decoding for stream in choice.streams)
        work = [Work(choice, (1,) * len(choice.streams), 1) for choice in decoding]
        read: list[Work] = []
        if reading and not self.tempo.must_measure(rows):
            limit = self.settings.prefill_chunk if decoding else self.settings.idle_prefill_chunk
            models = {stream.member.name for choice in reading for stream in choice.streams}
            read = _chunks(reading, self.tempo.allowance(limit, self.max_rows, rows, models))
        self.tempo.planned(rows, [pair for item in read for pair in zip(item.choice.streams, item.counts, strict=True)])
        return work + read

    def remove(self, choice: Choice, *, failed: bool = False) -> None:
        """Frees a choice's slots, running or not. Slots are wiped if it failed, or if no distribution of it was seen
        yet: what they hold is not known to be sound."""
        choice.finished = True
        if choice in self.running:
            self.running.remove(choice)
            for stream in choice.streams:
                if stream.slot is not None and stream.member.cache.holds(stream.slot):
                    stream.member.cache.release(stream.slot, keep=not failed and choice.position > 0)
                stream.slot = None
        elif choice in self.waiting:
            self.waiting.remove(choice)


def _holds_its_slots(choice: Choice) -> bool:
    return all(stream.slot is not None and stream.member.cache.holds(stream.slot) for stream in choice.streams)


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
    return sum(stream.missing + choice.waiting_positions for stream in choice.streams)


def _chunk(choice: Choice, allowance: Allowance, least: int) -> Work | None:
    """As much of a choice's prompt and scored text as the allowance of this step has for it, or `least` tokens."""
    streams = choice.streams
    wanted = max(stream.missing for stream in streams) + choice.waiting_positions
    shares = [allowance.share(stream, streams, wanted, least) for stream in streams]
    room = min(share - stream.missing for share, stream in zip(shares, streams, strict=True))
    positions = min(choice.waiting_positions, room, allowance.rows)
    if positions >= 1:
        counts = tuple(stream.missing + positions for stream in streams)
    else:
        positions = 0
        counts = tuple(min(stream.missing, share) for share, stream in zip(shares, streams, strict=True))
    return Work(choice, counts, positions) if any(counts) else None


def _joined(need: Need, slots: int, length: int) -> Need:
    return Need(need.slots + slots, max(need.length, rounded(length)))


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
