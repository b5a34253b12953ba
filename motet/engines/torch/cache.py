"""The key / value cache of one model: an arena of slots, one slot per stream.

Slots `[0, num_active)` belong to running streams and stay dense, so that a decoding step reads one block. Behind them
lie the slots of finished streams, kept for the prefixes that they hold until their place is needed. The arena's size,
`capacity × length` tokens, is set at admission and accounted exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LayerShape = tuple[int, int, int]  # kv_heads, key dim, value dim


@dataclass(slots=True, eq=False)
class Slot:
    """One stream's place. `tokens` are those whose keys and values are in the arena; `reserved` is the most it may
    hold. `index` changes when slots move. `salt` is of the request that computed them."""

    index: int
    tokens: list[int] = field(default_factory=list[int])
    reserved: int = 0
    last_use: int = 0
    salt: str = ""


class SlotCache:
    """Keys and values of every layer: lists of `(capacity, kv_heads, length, dim)` tensors."""

    def __init__(self, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> None:
        self.bytes_per_token = sum(h * (k + v) for h, k, v in shapes) * dtype.itemsize
        self.capacity: int
        self.length: int
        self.num_active: int
        self.slots: list[Slot]
        self.keys: list[Tensor]
        self.values: list[Tensor]
        self._clock = 0
        self._shapes = tuple(shapes)
        self._like = torch.empty(0, dtype=dtype, device=device)
        self.clear()

    @property
    def active(self) -> list[Slot]:
        return self.slots[: self.num_active]

    @property
    def nbytes(self) -> int:
        return self.capacity * self.length * self.bytes_per_token

    def resize(self, capacity: int, length: int) -> None:
        """A new arena that keeps the running streams and as many retained prefixes as fit; layer by layer, so that
        only one tensor exists twice at a time.

        Raises:
            RuntimeError, MemoryError: there is no memory for it; the cache is empty then, all its slots are lost.
        """
        assert capacity >= self.num_active
        retained = sorted(self.slots[self.num_active :], key=lambda slot: -slot.last_use)
        kept = self.active + [s for s in retained if s.tokens and len(s.tokens) <= length][: capacity - self.num_active]
        try:
            for layer, (heads, key_dim, value_dim) in enumerate(self._shapes):
                self.keys[layer] = self._moved(self.keys[layer], kept, capacity, length, heads, key_dim)
                self.values[layer] = self._moved(self.values[layer], kept, capacity, length, heads, value_dim)
        except (RuntimeError, MemoryError):
            self.clear()
            raise
        kept += [Slot(0) for _ in range(capacity - len(kept))]
        for index, slot in enumerate(kept):
            slot.index = index
        self.slots, self.capacity, self.length = kept, capacity, length

    def clear(self) -> None:
        """Forgets everything and holds no memory; slots given out before are lost."""
        self.capacity = self.length = self.num_active = 0
        self.slots = []
        self.keys = [self._like.new_zeros(0, heads, 0, dim) for heads, dim, _ in self._shapes]
        self.values = [self._like.new_zeros(0, heads, 0, dim) for heads, _, dim in self._shapes]

    def _moved(self, old: Tensor, kept: list[Slot], capacity: int, length: int, heads: int, dim: int) -> Tensor:
        # zeros, not empty: a masked key has weight 0, and 0 · NaN would be NaN
        new = self._like.new_zeros(capacity, heads, length, dim)
        for index, slot in enumerate(kept):
            held = len(slot.tokens)
            new[index, :, :held] = old[slot.index, :, :held]
        return new

    def acquire(self, tokens: Sequence[int], reserved: int, reuse: int, salt: str = "") -> Slot:
        """Takes a slot for a stream that will hold up to `reserved` tokens; needs a place behind the active ones.

        The longest prefix of `tokens[:reuse]` that a slot of the same salt holds is taken over: in place where that
        slot is idle, copied where it is running.
        """
        source, shared = self._longest_prefix(tokens, reuse, salt)
        if source is not None and source.index >= self.num_active:
            slot = source
        else:
            slot = self._least_recently_used()
            slot.tokens = []
            if source is not None:
                self._copy(source, slot, shared)
                slot.tokens = source.tokens[:shared]
        slot.tokens = slot.tokens[:shared]
        slot.reserved, slot.salt = reserved, salt
        self._swap(slot, self.slots[self.num_active])
        self.num_active += 1
        return slot

    def holds(self, slot: Slot) -> bool:
        """Whether the slot still exists: a failed `resize` loses all of them."""
        return slot.index < len(self.slots) and self.slots[slot.index] is slot

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """The stream has ended: its slot keeps its tokens as a prefix for others.

        `keep` False wipes it: what a failed forward wrote may be NaN, which would poison whoever comes next, even
        behind a mask.
        """
        if not keep:
            slot.tokens = []
            for arena in (*self.keys, *self.values):
                arena[slot.index] = 0
        self._clock += 1
        slot.last_use, slot.reserved = self._clock, 0
        self._swap(slot, self.slots[self.num_active - 1])
        self.num_active -= 1

    def _longest_prefix(self, tokens: Sequence[int], reuse: int, salt: str) -> tuple[Slot | None, int]:
        best: Slot | None = None
        length = 0
        for slot in self.slots:
            shared = common_prefix(slot.tokens, tokens, reuse) if slot.salt == salt else 0
            if shared > length or (shared == length > 0 and slot.index >= self.num_active):
                best, length = slot, shared
        return best, length

    def _least_recently_used(self) -> Slot:
        idle = self.slots[self.num_active :]
        return min(idle, key=lambda slot: (bool(slot.tokens), slot.last_use))

    def _copy(self, source: Slot, target: Slot, count: int) -> None:
        for arena in (*self.keys, *self.values):
            arena[target.index, :, :count] = arena[source.index, :, :count]

    def _swap(self, one: Slot, other: Slot) -> None:
        if one is other:
            return
        held = max(len(one.tokens), len(other.tokens))
        i, j = one.index, other.index
        for arena in (*self.keys, *self.values):
            saved = arena[i, :, :held].clone()
            arena[i, :, :held] = arena[j, :, :held]
            arena[j, :, :held] = saved
        self.slots[i], self.slots[j] = other, one
        one.index, other.index = j, i


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
