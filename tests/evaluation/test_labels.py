"""Labels of a figure: every one inside the frame, over no other and over no mark."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.evaluation.labels import Box, place

FRAME = Box(0, 0, 800, 500)
SIZE = (60.0, 12.0)


@given(st.lists(st.tuples(st.floats(0, 800), st.floats(0, 500)), max_size=25))
def test_no_label_lies_on_another_on_a_mark_or_on_the_frame(points: list[tuple[float, float]]) -> None:
    places = place(points, [SIZE] * len(points), [4.0] * len(points), FRAME)
    found = [box for box in places if box is not None]
    assert not any(one.meets(other) for one, other in combinations(found, 2))
    assert all(box.lies_in(FRAME) for box in found)
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    assert not any(box.meets(mark) for box in found for mark in marks)


def test_eighteen_points_in_a_heap_have_a_label_each() -> None:
    rng = random.Random(0)
    points = [(rng.gauss(400, 15), rng.gauss(250, 15)) for _ in range(18)]
    assert None not in place(points, [SIZE] * 18, [4.0] * 18, FRAME)


@pytest.mark.parametrize("at", [(0.0, 0.0), (800.0, 500.0), (800.0, 250.0), (400.0, 500.0)])
def test_a_point_at_the_edge_has_its_label_inside(at: tuple[float, float]) -> None:
    (box,) = place([at], [SIZE], [4.0], FRAME)
    assert box is not None
    assert box.lies_in(FRAME)


def test_what_finds_no_room_is_left_out() -> None:
    assert place([(5.0, 5.0)], [(50.0, 12.0)], [4.0], Box(0, 0, 40, 40)) == [None]
