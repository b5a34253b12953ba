"""Exact match and gap closed."""

from __future__ import annotations

from collections.abc import Sequence


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def is_exact(reply: str, answer: str, *, ended: bool) -> bool:
    """The reply is the answer word by word, and ended there by itself."""
    return ended and reply.strip() == answer.strip()


def gap_closed(base: float, composed: float, tuned: float) -> float | None:
    """(composed − base) / (tuned − base): 0 is the base alone, 1 the directly tuned larger model (Mitchell et al.
    2023, arXiv:2310.12962; Liu et al. 2024, arXiv:2401.08565).

    None where the tuned model is not better than the base: there is no gap.
    """
    return (composed - base) / (tuned - base) if tuned > base else None
