"""The slots of a model: prefixes, moves, arenas; and the promise that no slot ever reads another's tokens."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.engines.torch.cache import Slot, SlotCache, common_prefix

SHAPES = [(2, 3, 4), (1, 5, 5)]


def write(cache: SlotCache, slot: Slot, tokens: list[int]) -> None:
    """What a forward does, with the token id as key and value."""
    start, arena = len(slot.tokens), cache.arena_of(slot.index)
    for tensor in (*arena.keys, *arena.values):
        for offset, token in enumerate(tokens):
            tensor[slot.index - arena.first, :, start + offset] = float(token)
    slot.tokens += tokens


def assert_holds(cache: SlotCache, slot: Slot) -> None:
    arena = cache.arena_of(slot.index)
    for tensor in (*arena.keys, *arena.values):
        held = tensor[slot.index - arena.first, 0, : len(slot.tokens), 0]
        assert torch.equal(held, torch.tensor(slot.tokens, dtype=held.dtype))


def make(capacity: int, length: int = 16) -> SlotCache:
    cache = SlotCache(SHAPES, torch.float32, torch.device("cpu"))
    cache.resize(capacity, length)
    return cache


def test_bytes_are_those_of_the_tensors() -> None:
    cache = make(3, 10)
    cache.add(1, 20)
    assert cache.bytes_per_token == (2 * (3 + 4) + 1 * (5 + 5)) * 4
    tensors = [tensor for arena in cache.arenas for tensor in (*arena.keys, *arena.values)]
    assert cache.nbytes == sum(t.numel() * t.element_size() for t in tensors)


def test_a_finished_prefix_is_taken_over_in_place() -> None:
    cache = make(2)
    slot = cache.acquire([1, 2, 3, 4], 16, reuse=3)
    write(cache, slot, [1, 2, 3, 4])
    cache.release(slot)
    again = cache.acquire([1, 2, 3, 9], 16, reuse=3)
    assert again is slot
    assert again.tokens == [1, 2, 3]
    assert_holds(cache, again)


def test_a_running_prefix_is_copied() -> None:
    cache = make(2)
    one = cache.acquire([1, 2, 3], 16, reuse=2)
    write(cache, one, [1, 2, 3])
    two = cache.acquire([1, 2, 7], 16, reuse=2)
    assert two is not one
    write(cache, two, [7])
    assert (one.tokens, two.tokens) == ([1, 2, 3], [1, 2, 7])
    assert_holds(cache, one)
    assert_holds(cache, two)


def test_a_prefix_is_found_in_slots_of_any_length() -> None:
    cache = make(2, 8)
    cache.add(2, 32)
    short = cache.acquire([1, 2, 3], 8, reuse=2)
    write(cache, short, [1, 2, 3])
    cache.release(short)
    long = cache.acquire([1, 2, 3, 4], 32, reuse=3)
    assert (long.tokens, long.reserved) == ([1, 2, 3], 32)
    assert_holds(cache, long)
    assert_holds(cache, short)


def test_a_stream_that_grows_keeps_its_slot_and_tokens() -> None:
    cache = make(2, 4)
    cache.add(1, 8)
    slots = [cache.acquire([token], 4, reuse=0) for token in (1, 2)]
    for slot in slots:
        write(cache, slot, [slot.index, 5, 6, 7])
    cache.move(slots[0], 8)
    assert [slot.reserved for slot in slots] == [8, 4]
    write(cache, slots[0], [8])
    for slot in slots:
        assert_holds(cache, slot)
    assert (cache.num_active, len(cache.idle(4)), len(cache.idle(8))) == (2, 1, 0)


def test_nothing_moves_when_an_arena_is_added() -> None:
    """A request that is longer than all before it cost the others a copy of everything, as long as its own."""
    cache = make(4, 64)
    before = [tensor.data_ptr() for tensor in (*cache.arenas[0].keys, *cache.arenas[0].values)]
    cache.add(1, 4096)
    assert [tensor.data_ptr() for tensor in (*cache.arenas[0].keys, *cache.arenas[0].values)] == before
    assert cache.nbytes == (4 * 64 + 4096) * cache.bytes_per_token


def test_sparse_arenas_are_emptied_into_others() -> None:
    cache = make(2, 8)
    cache.add(2, 8)
    slots = [cache.acquire([token], 8, reuse=0) for token in range(4)]
    for slot in slots:
        write(cache, slot, [slot.index, 7])
    for slot in (slots[1], slots[3]):
        cache.release(slot)
    cache.compact()
    assert sorted(arena.num_active for arena in cache.arenas) == [0, 2]
    for slot in (slots[0], slots[2]):
        assert cache.holds(slot)
        assert_holds(cache, slot)


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


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_slots_never_mix(data: st.DataObject) -> None:
    """Any sequence of arrivals, tokens, growth, departures and arenas leaves every stream with its own tokens."""
    cache = make(2)
    running: list[Slot] = []
    actions = ["acquire", "append", "release", "add", "free", "move", "compact"]
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(actions))
        length = data.draw(st.sampled_from([16, 24]))
        idle = [arena for arena in cache.arenas if not arena.num_active]
        if action == "acquire" and cache.idle(length):
            tokens = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
            slot = cache.acquire(tokens, length, reuse=len(tokens) - 1)
            assert slot.tokens == tokens[: len(slot.tokens)]
            assert slot.reserved == length
            write(cache, slot, tokens[len(slot.tokens) :])
            running.append(slot)
        elif action == "append" and running:
            slot = data.draw(st.sampled_from(running))
            if len(slot.tokens) < slot.reserved:
                write(cache, slot, [data.draw(st.integers(3, 9))])
        elif action == "release" and running:
            slot = data.draw(st.sampled_from(running))
            running.remove(slot)
            cache.release(slot, keep=data.draw(st.booleans()))
        elif action == "add" and len(cache.arenas) < 5:
            cache.add(data.draw(st.integers(1, 3)), length)
        elif action == "free" and idle:
            cache.free(data.draw(st.sampled_from(idle)))
        elif action == "move" and running and cache.idle(24):
            cache.move(data.draw(st.sampled_from(running)), 24)
        elif action == "compact":
            cache.compact()
        assert cache.num_active == len(running)
        assert set(map(id, cache.active)) == set(map(id, running))
        for arena in cache.arenas:
            for row, slot in enumerate(arena.slots):
                assert (slot.index, slot.reserved) == (arena.first + row, arena.length)
                assert_holds(cache, slot)
