"""What a refused client is told to wait."""

from __future__ import annotations

import pytest

from motet.server.http.errors import ApiError
from motet.server.service import Admission, FreedPlaces


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_follows_the_places_freed() -> None:
    clock = Clock()
    pace = FreedPlaces(clock)
    assert pace.wait(5) == 1  # nothing is known yet
    for _ in range(20):
        clock.now += 2
        pace.freed(1)
    assert pace.wait(1) == 2
    assert pace.wait(8) == 16
    assert pace.wait(1000) == 60
    clock.now += 61
    assert pace.wait(1) == 60  # nothing became free for a minute


def test_fast_queues_are_asked_again_at_once() -> None:
    clock = Clock()
    pace = FreedPlaces(clock)
    for _ in range(10_000):
        clock.now += 0.001
        pace.freed(3)
    assert pace.wait(7) == 1


def refusal(admission: Admission, choices: int, key: str | None) -> tuple[int, str]:
    """Status and Retry-After."""
    with pytest.raises(ApiError) as refused:
        admission.reserve(choices, key)
    assert refused.value.headers is not None
    return refused.value.status_code, refused.value.headers["retry-after"]


def test_refusals_say_the_speed() -> None:
    """Of the whole queue with 503, of the key's own places with 429."""
    clock = Clock()
    admission = Admission(4, 3, clock=clock)
    for key in ("mine", "other"):  # the key's own begin with its first use
        admission.reserve(1, key).release()
    for _ in range(5):
        clock.now += 4
        for key in ("mine", "other"):
            with admission.reserve(1, key):
                pass
    mine = admission.reserve(2, "mine")
    assert refusal(admission, 2, "mine") == (429, "4")  # one place is missing, 6 came in 20 s
    other = admission.reserve(2, "other")
    assert refusal(admission, 3, "other") == (503, "5")  # 3 are missing, 12 came in 20 s
    mine.release()
    mine.release()
    other.release()
    assert admission.taken == 0
