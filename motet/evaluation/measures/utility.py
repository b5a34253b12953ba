"""Model utility."""

from __future__ import annotations

from collections.abc import Sequence


def harmonic_mean(values: Sequence[float]) -> float | None:
    """n / Σ 1/v, 0 where one value is 0; None of nothing. TOFU's model utility is that of {probability, ROUGE-L
    recall, truth ratio} × {retain, real authors, world facts}.

    Raises:
        ValueError: a value is negative.
    """
    if not values:
        return None
    if min(values) < 0:
        raise ValueError(f"a harmonic mean needs values that are not negative, got {min(values)}")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)
