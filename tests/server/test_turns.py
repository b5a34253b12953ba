"""Who has much to send waits for a turn: one in each round of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from motet.server.http import turns as module
from motet.server.http.turns import Turn, Turns


async def rounds_until(task: asyncio.Task[None]) -> int:
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    return count


async def test_one_turn_a_round_in_the_order_of_asking() -> None:
    turns, taken = Turns(), list[tuple[int, int]]()
    now = 0

    async def work(number: int) -> None:
        for _ in range(3):
            await turns.take()
            taken.append((now, number))

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        now += 1
    rounds = [when for when, _ in taken]
    assert len(set(rounds)) == len(rounds) == 12
    assert [number for _, number in taken] == [0, 1, 2, 3] * 3


async def test_others_wait_for_one_turn_however_many_ask() -> None:
    """Without turns all forty would come before what became ready after them."""
    turns, taken = Turns(), list[int]()

    async def work(number: int) -> None:
        await turns.take()
        taken.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(40)]
    await asyncio.sleep(0)
    other = asyncio.create_task(asyncio.sleep(0))
    assert await rounds_until(other) <= 3
    assert len(taken) <= 4
    await asyncio.gather(*tasks)
    assert taken == list(range(40))


async def test_whoever_left_costs_nobody_a_turn() -> None:
    turns = Turns()
    left = [asyncio.create_task(turns.take()) for _ in range(50)]
    last = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    assert await rounds_until(last) <= 4
    assert all(task.cancelled() for task in left)


@pytest.mark.parametrize(("turn_s", "expected"), [(60.0, 1), (-1.0, 5)])
async def test_a_turn_lasts_its_time(monkeypatch: pytest.MonkeyPatch, turn_s: float, expected: int) -> None:
    monkeypatch.setattr(module, "TURN_S", turn_s)
    turns, asked = Turns(), list[None]()
    take = turns.take

    async def counted() -> None:
        asked.append(None)
        await take()

    monkeypatch.setattr(turns, "take", counted)
    turn = Turn(turns)
    for _ in range(5):
        await turn.go_on()
    assert len(asked) == expected


def test_a_loop_that_ended_leaves_nobody_behind() -> None:
    turns = Turns()

    loop = asyncio.new_event_loop()
    waiting = loop.create_task(turns.take())
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not waiting.done()

    async def take() -> None:
        async with asyncio.timeout(5):
            await turns.take()

    asyncio.run(take())
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.close()
