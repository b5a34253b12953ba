"""Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point whether no other is at least as good everywhere and better somewhere; more is better."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)
