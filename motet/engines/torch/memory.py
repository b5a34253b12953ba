"""The memory that the caches of all members share: how long a stream's slot is, and where its place comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from motet.engines.torch.cache import Arena, Slot, SlotCache
from motet.engines.torch.model import Member

SHORTEST = 64  # tokens: slots of streams that never become longer, and the quantum of those that fit no otherwise
FIRST_LENGTH = 256  # other slots have this length, or twice, four times … as much
PARTS = 32  # an arena of several slots takes such a part of the memory at most
KEPT = 4  # slots of each length that a model has where memory is free: idle ones keep prefixes

Places = Counter[tuple[str, int]]  # slots, by model and length


def slot_length(tokens: int, most: int) -> int:
    """Length of the slot of a stream that holds `tokens` now, and may come to hold `most`."""
    return SHORTEST if most <= SHORTEST else max(FIRST_LENGTH, 1 << (tokens - 1).bit_length())


class Memory:
    """Slots of all lengths, `budget` bytes of them at most.

    Args:
        members: by name.
        budget: bytes of keys and values.
        max_running: slots that one arena has at most.
    """

    def __init__(self, members: Mapping[str, Member], budget: int, max_running: int) -> None:
        self.budget = budget
        self._max_running = max_running
        self.use(members)

    def use(self, members: Mapping[str, Member]) -> None:
        """Other members from now on; what one that is gone held is its own, and goes with it."""
        self._caches: dict[str, SlotCache] = {name: member.cache for name, member in members.items()}

    def places(self, contexts: Sequence[tuple[str, int]], tokens: int, most: int) -> list[tuple[str, int]]:
        """Model and length of the slot that each stream of a choice needs.

        Args:
            contexts: model and tokens of each stream's context.
            tokens: how many are appended to each of them now.
            most: how many are appended in the end. A choice that would not fit then has slots cut to its own size.
        """
        last = [(name, slot_length(size + most, size + most)) for name, size in contexts]
        if self.nbytes(Places(last)) <= self.budget:
            return [(name, slot_length(size + min(tokens, most), size + most)) for name, size in contexts]
        return [
            (name, min(slot_length(size + min(tokens, most), size + most), -(-(size + most) // SHORTEST) * SHORTEST))
            for name, size in contexts
        ]

    def nbytes(self, places: Places) -> int:
        return sum(number * self._slot_bytes(place) for place, number in places.items())

    def make_room(self, wanted: Places) -> bool:
        """Sees to it that so many slots are idle; False where what is active leaves no memory for them.

        Raises:
            RuntimeError, MemoryError: the machine has less memory than the budget.
        """
        roomy = self._roomy(wanted)
        if not roomy or self._add(roomy, []):
            return True
        if not self._lacking(wanted):
            return True
        for cache in self._caches.values():
            cache.compact()
        return any(self._add(new, evictable) for new, evictable in self._ways(wanted))

    def _ways(self, wanted: Places) -> Iterator[tuple[Places, list[tuple[SlotCache, Arena]]]]:
        """New slots, and idle arenas whose prefixes are given up for them."""
        idle = [(name, arena) for name, cache in self._caches.items() for arena in cache.arenas if not arena.num_active]
        others = [(self._caches[name], arena) for name, arena in idle if (name, arena.length) not in wanted]
        yield self._roomy(wanted), others
        yield self._lacking(wanted), others
        # its own idle slots may lie in arenas that are larger than it needs
        lost = Places(dict.fromkeys(wanted, 0))
        for name, arena in idle:
            lost[name, arena.length] += len(arena.slots)
        kept = Places({place: len(self._idle(place)) - lost[place] for place in wanted})
        yield wanted - kept, [(self._caches[name], arena) for name, arena in idle]

    def _add(self, new: Places, evictable: list[tuple[SlotCache, Arena]]) -> bool:
        """Adds the slots if memory is free, or becomes so by evicting the least recently used of these arenas."""
        excess = sum(cache.nbytes for cache in self._caches.values()) + self.nbytes(new) - self.budget
        if excess > sum(cache.nbytes_of(arena) for cache, arena in evictable):
            return False
        for cache, arena in sorted(evictable, key=lambda pair: pair[1].last_use):
            if excess <= 0:
                break
            excess -= cache.nbytes_of(arena)
            cache.free(arena)
        for (name, length), number in new.items():
            self._caches[name].add(number, length)
        return True

    def _lacking(self, wanted: Places) -> Places:
        return wanted - Places({place: len(self._idle(place)) for place in wanted})

    def _roomy(self, wanted: Places) -> Places:
        """Slots that are lacking, or would be without giving prefixes up; as many more as one arena has."""
        lacking, new = self._lacking(wanted), Places()
        for place, number in wanted.items():
            blank = sum(not slot.tokens for slot in self._idle(place))
            name, length = place
            held = sum(len(arena.slots) for arena in self._caches[name].arenas if arena.length == length)
            if lacking[place] or (blank < number and held < KEPT):
                part = self.budget // PARTS // self._slot_bytes(place)
                new[place] = max(lacking[place], 1, min(part, self._max_running))
        return new

    def _idle(self, place: tuple[str, int]) -> list[Slot]:
        name, length = place
        return self._caches[name].idle(length)

    def _slot_bytes(self, place: tuple[str, int]) -> int:
        name, length = place
        return length * self._caches[name].bytes_per_token
