"""How long forwards take, and how much of the prompts a step may therefore read so that nobody waits for them."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from motet.engines.torch.model import Member
from motet.engines.torch.stream import StreamState

FINISHING = (
    0.25  # of an ordinary step: what a prompt may take in addition if it ends in this step, and its answer begins
)
LEAST_CHUNK = 8  # prompt tokens that a step reads however long they take
UNKNOWN_CHUNK = 32  # prompt tokens that are read of a member whose prompts have not been timed yet
MEASURE_EVERY = 32  # steps with prompts after which one without is taken again
SCALE = 64.0  # tokens; both features of a price are then of the order of one
FAR = 250.0  # tokens before a token, at which reading it costs one `reach` more
REMEMBERED = 5  # the last times of ordinary steps: their median counts, which a hiccup of the machine does not move
LEARNING = 0.3  # of the difference between a forecast and what was measured
BELIEVED = 2.0  # times the forecast: what took longer is taken for so long, since it may be a hiccup


@dataclass(slots=True)
class StepLoad:
    """What a step asks of one member: `rows` streams that decode, and (start, count) of the prompts' tokens."""

    rows: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def features(self) -> tuple[float, float]:
        """Tokens of prompts, and how much lies before them: attention costs in proportion to it."""
        tokens = sum(count for _, count in self.chunks)
        reach = sum(count * (start + count / 2) / FAR for start, count in self.chunks)
        return tokens / SCALE, reach / SCALE


class ForwardTimes:
    """What one member takes: seconds of its ordinary steps (decoding alone) by the number of their rows, and seconds
    that tokens of prompts add. Learned from its forwards as they come, on whatever machine."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._ordinary: dict[int, deque[float]] = {}
        self._token = 0.0
        self._reach = 0.0
        self._is_priced = False
        self._mixed_steps = 0  # since an ordinary one
        self._spent = member.forward_seconds

    def observe(self, load: StepLoad) -> None:
        """The last step asked this of the member."""
        seconds = self.member.forward_seconds - self._spent
        self._spent = self.member.forward_seconds
        if load.rows and not load.chunks:
            self._mixed_steps = 0
            self._time(_bucket(load.rows), seconds)
        elif not self.is_timed:
            self._time(1, seconds)
        elif load.chunks and seconds > 0:
            self._mixed_steps += load.rows > 0
            self._learn(load.features(), max(0.0, seconds - self.ordinary(max(1, load.rows))))

    def skip(self) -> None:
        """Forwards so far are not to be learned from."""
        self._spent = self.member.forward_seconds

    @property
    def is_timed(self) -> bool:
        """Whether any forward was timed: at first one of a single token, whatever it belongs to."""
        return bool(self._ordinary)

    def is_measured(self, rows: int) -> bool:
        """Whether ordinary steps of so many rows were timed, not too long ago."""
        return _bucket(rows) in self._ordinary and self._mixed_steps < MEASURE_EVERY

    def ordinary(self, rows: int) -> float:
        """Seconds of a step of so many decoding rows; of the nearest number of them that was timed."""
        if not self._ordinary:
            return 0.0
        wanted = _bucket(rows)
        nearest = min(self._ordinary, key=lambda known: (abs(known - wanted), known))
        return statistics.median_low(self._ordinary[nearest])

    def price(self, start: int) -> float | None:
        """Seconds that one token of a prompt adds at this position; None before any was timed."""
        return (self._token + self._reach * start / FAR) / SCALE if self._is_priced else None

    def _time(self, bucket: int, seconds: float) -> None:
        self._ordinary.setdefault(bucket, deque(maxlen=REMEMBERED)).append(seconds)

    def _learn(self, features: tuple[float, float], seconds: float) -> None:
        """Normalised least mean squares (Widrow and Hoff): the smallest change that explains part of the error."""
        tokens, reach = features
        forecast = self._token * tokens + self._reach * reach
        error = (min(seconds, BELIEVED * forecast) if forecast else seconds) - forecast
        rate = (LEARNING if self._is_priced else 1.0) * error / (tokens * tokens + reach * reach)
        self._token = max(0.0, self._token + rate * tokens)
        self._reach = max(0.0, self._reach + rate * reach)
        self._is_priced = True


@dataclass(slots=True)
class Allowance:
    """What the prompts of a step may still take: tokens of each model, seconds, more of them for prompts that end in
    this step (`finishing`), and distributions of scored text."""

    tokens: dict[str, int]
    seconds: float
    finishing: float
    rows: int
    times: Mapping[str, ForwardTimes]

    def split(self, part: float) -> Allowance:
        """Takes this part of the tokens and seconds away, to be given back by `join`."""
        kept = {name: int(count * part) for name, count in self.tokens.items()}
        for name, count in kept.items():
            self.tokens[name] -= count
        seconds = self.seconds * part
        self.seconds *= 1 - part  # no difference: it may be infinite
        return Allowance(kept, seconds, 0.0, 0, self.times)

    def join(self, other: Allowance) -> None:
        for name, count in other.tokens.items():
            self.tokens[name] += count
        self.seconds += other.seconds

    def share(self, stream: StreamState, streams: Sequence[StreamState], wanted: int, least: int) -> int:
        """Tokens for one of a choice's streams, which all move together and want so many each; at least one where its
        model has any left, so that a chunk smaller than the number of streams still moves. Judged tokens are `rows` at
        most."""
        left = self.tokens[stream.member.name]
        part = left // sum(other.member is stream.member for other in streams)
        share = min(max(part, 1 if left > 0 else 0), max(least, self._affordable(streams, wanted)))
        return min(share, max(0, stream.reusable - stream.computed) + self.rows) if stream.judged else share

    def spend(self, streams: Sequence[StreamState], counts: Sequence[int], rows: int) -> None:
        for stream, count in zip(streams, counts, strict=True):
            self.tokens[stream.member.name] -= count
            self.seconds -= count * (self.times[stream.member.name].price(stream.computed) or 0.0)
        if self.seconds < 0:
            self.finishing += self.seconds
            self.seconds = 0.0
        self.rows -= rows

    def _affordable(self, streams: Sequence[StreamState], wanted: int) -> int:
        prices = [self.times[stream.member.name].price(stream.computed) for stream in streams]
        known = sum(price for price in prices if price is not None)
        most = UNKNOWN_CHUNK if None in prices else max(self.tokens.values())
        if not known:
            return most
        if wanted * known <= self.seconds + self.finishing:
            return min(most, wanted)
        return int(min(most, self.seconds / known))


class Tempo:
    """The times of all members: how long a step may become by the prompts that it reads.

    Args:
        members: by name.
        stretch: how many times as long as an ordinary step one that reads prompts beside it may take.
        idle_stretch: the same where nobody decodes, in steps of one row.
    """

    def __init__(self, members: Mapping[str, Member], stretch: float, idle_stretch: float) -> None:
        self.times = {name: ForwardTimes(member) for name, member in members.items()}
        self._stretch = stretch
        self._idle_stretch = idle_stretch
        self._loads: dict[str, StepLoad] = {}
        self._measured_last = False

    def use(self, members: Mapping[str, Member]) -> None:
        """Other members from the next step on; what is known of those that stay is kept."""
        self.times = {name: self.times.get(name) or ForwardTimes(member) for name, member in members.items()}
        self._loads = {name: load for name, load in self._loads.items() if name in members}

    def observe(self) -> None:
        """Learns from the step that was planned last."""
        for name, load in self._loads.items():
            self.times[name].observe(load)
        self._loads = {}

    def disregard(self) -> None:
        """The step that was planned last did more than was planned: it tells nothing of ordinary ones."""
        for times in self.times.values():
            times.skip()
        self._loads = {}

    def planned(self, decoding: Mapping[str, int], chunks: Sequence[tuple[StreamState, int]]) -> None:
        """What the next step does: rows of every model that decodes, and tokens of streams that read."""
        loads = {name: StepLoad(rows) for name, rows in decoding.items()}
        for stream, count in chunks:
            if count:
                loads.setdefault(stream.member.name, StepLoad()).chunks.append((stream.computed, count))
        self._loads = loads

    def _must_measure(self, decoding: Mapping[str, int]) -> bool:
        """Whether the next step is to be an ordinary one, since nobody knows how long such a one takes; never two in a
        row, lest prompts wait for what cannot be timed."""
        unknown = not all(self.times[name].is_measured(rows) for name, rows in decoding.items())
        self._measured_last = unknown and not self._measured_last
        return self._measured_last

    def allowance(
        self, limit: int, rows: int, decoding: Mapping[str, int], reading: Collection[str]
    ) -> Allowance | None:
        """What prompts may add to the next step: at most `limit` tokens of each model, a single one where that is how a
        step's time comes to be known. Where models read that decode nothing, no less time than their weights take,
        which the step reads for them alone. None: nothing, since an ordinary step has to be measured."""
        if self._must_measure(decoding):
            return None
        tokens = dict.fromkeys(reading, limit if all(self.times[name].is_timed for name in reading) else 1)
        alone = sum(self.times[name].ordinary(1) for name in reading if name not in decoding)
        if not decoding:
            return Allowance(tokens, _lengthened(alone, self._idle_stretch), 0.0, rows, self.times)
        ordinary = sum(self.times[name].ordinary(count) for name, count in decoding.items())
        seconds = max(_lengthened(ordinary, self._stretch), alone)
        return Allowance(tokens, seconds, FINISHING * ordinary, rows, self.times)


def _lengthened(seconds: float, stretch: float) -> float:
    """What is added to a step; nothing to one that nobody has timed, however far it may be stretched."""
    return seconds * (stretch - 1) if seconds else 0.0


def _bucket(rows: int) -> int:
    """Numbers of rows that are timed together: powers of two."""
    return 1 << max(0, rows - 1).bit_length()
