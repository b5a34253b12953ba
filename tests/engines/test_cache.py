"""The slot arena: prefixes, moves, sizes; and the promise that no slot ever reads another's tokens."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.engines.torch.cache import Slot, SlotCache, common_prefix

SHAPES = [(2, 3, 4), (1, 5, 5)]


def write(cache: SlotCache, slot: Slot, tokens: list[int]) -> None:
    """What a forward does, with the token id as key and value."""
    start = len(slot.tokens)
    for arena in (*cache.keys, *cache.values):
        for offset, token in enumerate(tokens):
            arena[slot.index, :, start + offset] = float(token)
    slot.tokens += tokens


def assert_holds(cache: SlotCache, slot: Slot) -> None:
    for arena in (*cache.keys, *cache.values):
        held = arena[slot.index, 0, : len(slot.tokens), 0]
        assert torch.equal(held, torch.tensor(slot.tokens, dtype=held.dtype))


def make(capacity: int, length: int = 16) -> SlotCache:
    cache = SlotCache(SHAPES, torch.float32, torch.device("cpu"))
    cache.resize(capacity, length)
    return cache


def test_bytes_are_those_of_the_tensors() -> None:
    cache = make(3, 10)
    assert cache.bytes_per_token == (2 * (3 + 4) + 1 * (5 + 5)) * 4
    assert cache.nbytes == sum(t.numel() * t.element_size() for t in (*cache.keys, *cache.values))


def test_a_finished_prefix_is_taken_over_in_place() -> None:
    cache = make(2)
    slot = cache.acquire([1, 2, 3, 4], 8, reuse=3)
    write(cache, slot, [1, 2, 3, 4])
    cache.release(slot)
    again = cache.acquire([1, 2, 3, 9], 8, reuse=3)
    assert again is slot
    assert again.tokens == [1, 2, 3]
    assert_holds(cache, again)


def test_a_running_prefix_is_copied() -> None:
    cache = make(2)
    one = cache.acquire([1, 2, 3], 8, reuse=2)
    write(cache, one, [1, 2, 3])
    two = cache.acquire([1, 2, 7], 8, reuse=2)
    assert two is not one
    write(cache, two, [7])
    assert (one.tokens, two.tokens) == ([1, 2, 3], [1, 2, 7])
    assert_holds(cache, one)
    assert_holds(cache, two)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4], 9) == 2
    assert common_prefix([1, 2, 3], [1, 2, 3], 2) == 2
    assert common_prefix([], [1], 1) == 0
    assert common_prefix([2], [1], 1) == 0


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30), st.integers(0, 40))
def test_common_prefix_counts(held: list[int], tokens: list[int], limit: int) -> None:
    count = 0
    while count < min(len(held), len(tokens), limit) and held[count] == tokens[count]:
        count += 1
    assert common_prefix(held, tokens, limit) == count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slots_never_mix(data: st.DataObject) -> None:
    """Any sequence of arrivals, tokens, departures and resizes leaves every stream with its own tokens."""
    cache = make(2)
    running: list[Slot] = []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["acquire", "append", "release", "resize"]))
        if action == "acquire" and len(running) < cache.capacity:
            tokens = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
            slot = cache.acquire(tokens, 16, reuse=len(tokens) - 1)
            assert slot.tokens == tokens[: len(slot.tokens)]
            write(cache, slot, tokens[len(slot.tokens) :])
            running.append(slot)
        elif action == "append" and running:
            slot = data.draw(st.sampled_from(running))
            if len(slot.tokens) < cache.length:
                write(cache, slot, [data.draw(st.integers(3, 9))])
        elif action == "release" and running:
            slot = data.draw(st.sampled_from(running))
            running.remove(slot)
            cache.release(slot)
        elif action == "resize":
            cache.resize(data.draw(st.integers(max(1, len(running)), 6)), 16)
        assert {slot.index for slot in running} == set(range(len(running))) == set(range(cache.num_active))
        for slot in cache.slots:
            assert cache.slots[slot.index] is slot
            assert_holds(cache, slot)
