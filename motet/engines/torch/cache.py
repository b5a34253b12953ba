"""The key / value cache of one model: arenas of slots, one slot per stream.

An arena holds slots of one length. A stream lies in one that is as long as it needs to be, and moves to a longer one as
it grows, so a long request makes no other's slot long. Nothing else moves: arenas come and go whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

LayerShape = tuple[int, int, int]  # kv_heads, key dim, value dim
STRIDE = 1 << 16  # of the places' numbers from arena to arena
_clock = count(1)  # of all caches, so that the least recently used of several can be found


@dataclass(slots=True, eq=False)
class Slot:
    """One stream's place. `tokens` are those whose keys and values are in the arena; `reserved` is the most it may
    hold. `index` is the number of its place, which changes when slots move. `salt` is of the request that computed
    them, `adapter` the number of the adapter with which (0: without)."""

    index: int
    reserved: int
    tokens: list[int] = field(default_factory=list[int])
    last_use: int = 0
    salt: str = ""
    adapter: int = 0


class Arena:
    """Slots of one length, with keys and values of every layer: lists of `(capacity, kv_heads, length, dim)` tensors.

    Slots `[0, num_active)` belong to running streams and stay dense, so that a decoding step reads one block. Behind
    them lie the slots of finished streams, kept for the prefixes that they hold until their place is needed.

    Raises:
        RuntimeError, MemoryError: there is no memory for it.
    """

    def __init__(self, number: int, capacity: int, length: int, shapes: Sequence[LayerShape], like: Tensor) -> None:
        # zeros, not empty: a masked key has weight 0, and 0 · NaN would be NaN
        self.keys = [like.new_zeros(capacity, heads, length, dim) for heads, dim, _ in shapes]
        self.values = [like.new_zeros(capacity, heads, length, dim) for heads, _, dim in shapes]
        self.first = number * STRIDE
        self.length = length
        self.slots = [Slot(self.first + row, length) for row in range(capacity)]
        self.num_active = 0

    @property
    def active(self) -> list[Slot]:
        return self.slots[: self.num_active]

    @property
    def idle(self) -> list[Slot]:
        return self.slots[self.num_active :]

    @property
    def last_use(self) -> int:
        return max(slot.last_use for slot in self.slots)

    def take(self, slot: Slot) -> None:
        """An idle slot becomes active."""
        self._swap(slot, self.slots[self.num_active])
        self.num_active += 1

    def leave(self, slot: Slot) -> None:
        """An active slot becomes idle."""
        self._swap(slot, self.slots[self.num_active - 1])
        self.num_active -= 1

    def wipe(self, slot: Slot) -> None:
        slot.tokens = []
        for tensor in (*self.keys, *self.values):
            tensor[slot.index - self.first] = 0

    def copy(self, source: Arena, index: int, slot: Slot, length: int) -> None:
        """The first tokens of a place of another arena, or of this one, into a slot."""
        row, other = slot.index - self.first, index - source.first
        for target, tensor in zip((*self.keys, *self.values), (*source.keys, *source.values), strict=True):
            target[row, :, :length] = tensor[other, :, :length]

    def _swap(self, one: Slot, other: Slot) -> None:
        if one is other:
            return
        held = max(len(one.tokens), len(other.tokens))
        i, j = one.index - self.first, other.index - self.first
        for tensor in (*self.keys, *self.values):
            saved = tensor[i, :, :held].clone()
            tensor[i, :, :held] = tensor[j, :, :held]
            tensor[j, :, :held] = saved
        self.slots[i], self.slots[j] = other, one
        one.index, other.index = other.index, one.index


class SlotCache:
    """The arenas of one model."""

    def __init__(self, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> None:
        self.bytes_per_token = sum(h * (k + v) for h, k, v in shapes) * dtype.itemsize
        self.arenas: list[Arena] = []
        self._numbers = count()
        self._shapes = tuple(shapes)
        self._like = torch.empty(0, dtype=dtype, device=device)

    @property
    def active(self) -> list[Slot]:
        return [slot for arena in self.arenas for slot in arena.active]

    @property
    def num_active(self) -> int:
        return sum(arena.num_active for arena in self.arenas)

    @property
    def nbytes(self) -> int:
        return sum(map(self.nbytes_of, self.arenas))

    def nbytes_of(self, arena: Arena) -> int:
        return len(arena.slots) * arena.length * self.bytes_per_token

    def arena_of(self, index: int) -> Arena:
        """The arena that has the place of this number; KeyError: it is gone."""
        first = index - index % STRIDE
        arena = next((arena for arena in self.arenas if arena.first == first), None)
        if arena is None:
            raise KeyError(index)
        return arena

    def idle(self, length: int) -> list[Slot]:
        """Slots of this length that no stream has."""
        return [slot for arena in self.arenas if arena.length == length for slot in arena.idle]

    def resize(self, capacity: int, length: int) -> None:
        """A single empty arena, whose places are `0 … capacity - 1`, for who runs the model without an engine."""
        self.clear()
        self.add(capacity, length)

    def add(self, capacity: int, length: int) -> None:
        """Another arena.

        Raises:
            RuntimeError, MemoryError: there is no memory for it; nothing has changed then.
        """
        self.arenas.append(Arena(next(self._numbers), capacity, length, self._shapes, self._like))

    def free(self, arena: Arena) -> None:
        assert not arena.num_active
        self.arenas.remove(arena)

    def clear(self) -> None:
        """Forgets everything and holds no memory; slots given out before are lost."""
        self.arenas = []
        self._numbers = count()

    def acquire(self, tokens: Sequence[int], length: int, reuse: int, salt: str = "", adapter: int = 0) -> Slot:
        """An idle slot of this length, which must exist, for a stream that will read `tokens`.

        The longest prefix of `tokens[:reuse]` that a slot of the same salt and adapter holds is taken over: in place
        where that slot is idle and as long, else copied.
        """
        source, shared = self._longest_prefix(tokens, reuse, (salt, adapter), length)
        idle = self.idle(length)
        slot = source if source in idle else min(idle, key=_by_use)
        arena = self.arena_of(slot.index)
        held: list[int] = []
        if source is not None:
            held = source.tokens[:shared]
            if source is not slot:
                arena.copy(self.arena_of(source.index), source.index, slot, shared)
        slot.tokens, slot.salt, slot.adapter = held, salt, adapter
        arena.take(slot)
        return slot

    def holds(self, slot: Slot) -> bool:
        """Whether the slot still exists: a cache that was cleared has lost all of them."""
        return any(slot in arena.slots for arena in self.arenas)

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """The stream has ended: its slot keeps its tokens as a prefix for others.

        `keep` False wipes it: what a failed forward wrote may be NaN, which would poison whoever comes next, even
        behind a mask.
        """
        arena = self.arena_of(slot.index)
        if not keep:
            arena.wipe(slot)
        slot.last_use = next(_clock)
        arena.leave(slot)

    def move(self, slot: Slot, length: int) -> None:
        """An active slot, with what it holds, to an idle place of this length, which must exist."""
        self._move(slot, min(self.idle(length), key=_by_use))

    def compact(self) -> None:
        """Empties arenas whose active slots others of their length have room for."""
        for arena in sorted(self.arenas, key=lambda arena: arena.num_active):
            others = [other for other in self.arenas if other.length == arena.length and other.num_active]
            room = [slot for other in others if other is not arena for slot in other.idle]
            if 0 < arena.num_active <= len(room):
                for slot, place in zip(arena.active, sorted(room, key=_by_use), strict=False):
                    self._move(slot, place)

    def _move(self, slot: Slot, place: Slot) -> None:
        old, new = self.arena_of(slot.index), self.arena_of(place.index)
        new.copy(old, slot.index, place, len(slot.tokens))
        place.tokens = slot.tokens  # which the place holds now: it may be swapped
        new.take(place)
        # the stream's slot goes to the new place, and the other one to the old
        i, j = slot.index - old.first, place.index - new.first
        old.slots[i], new.slots[j] = place, slot
        slot.index, place.index = place.index, slot.index
        slot.reserved, place.reserved = new.length, old.length
        place.tokens = []
        old.leave(place)

    def _longest_prefix(
        self, tokens: Sequence[int], reuse: int, owner: tuple[str, int], length: int
    ) -> tuple[Slot | None, int]:
        """The best is one that can be taken over in place."""
        best, best_rank = None, (0, False)
        for arena in self.arenas:
            for row, slot in enumerate(arena.slots):
                shared = common_prefix(slot.tokens, tokens, reuse) if (slot.salt, slot.adapter) == owner else 0
                rank = (shared, arena.length == length and row >= arena.num_active)
                if shared and rank > best_rank:
                    best, best_rank = slot, rank
        return best, best_rank[0]


def _by_use(slot: Slot) -> tuple[bool, int]:
    """Slots that hold nothing go first, then those that were used least recently."""
    return bool(slot.tokens), slot.last_use


def common_prefix(held: Sequence[int], tokens: Sequence[int], limit: int) -> int:
    """Length of the longest common prefix, at most `limit`; bisects on whole slices, which compare in C."""
    low, high = 0, min(len(held), len(tokens), limit)
    if high == 0 or held[0] != tokens[0]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if held[low:middle] == tokens[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
