"""Lengths as a histogram in plain text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 95, 99)


def histogram(
    lengths: Sequence[int] | NDArray[np.int64], limit: int | None = None, *, bins: int = 12, width: int = 40
) -> str:
    """Bars of the lengths in at most `bins` equal steps, percentiles, and the share of lengths above `limit`.

    Args:
        lengths: at least one, tokens.
        limit: the longest length that training would not cut.
        width: characters of the longest bar.
    """
    values = np.asarray(lengths, np.int64)
    low, high = int(values.min()), int(values.max())
    step = -(-(high - low + 1) // bins)
    counts = np.bincount((values - low) // step)
    label = len(str(high))
    lines = [
        f"{low + i * step:>{label}}–{min(low + (i + 1) * step - 1, high):<{label}} "
        f"{'█' * _bar(int(count), int(counts.max()), width)} {count}"
        for i, count in enumerate(counts)
    ]
    return "\n".join([*lines, _summary(values), *([] if limit is None else [_above(values, limit)])])


def _bar(count: int, most: int, width: int) -> int:
    """Characters of a bar; whatever is there is seen."""
    return max(round(width * count / most), 1) if count else 0


def _summary(values: NDArray[np.int64]) -> str:
    """Percentiles by the nearest rank, so that each of them is a length that occurs."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    middle = ", ".join(f"p{percent} {int(value)}" for percent, value in zip(PERCENTILES, found, strict=True))
    total = int(values.sum())
    return f"{len(values)} documents, {total} tokens: shortest {values.min()}, {middle}, longest {values.max()}"


def _above(values: NDArray[np.int64], limit: int) -> str:
    above = values > limit
    lost = int((values[above] - limit).sum())
    share = 100 * float(above.mean())
    return f"longer than {limit}: {int(above.sum())} documents ({share:.1f} %), {lost} tokens beyond it"
