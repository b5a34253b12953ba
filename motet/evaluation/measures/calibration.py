"""Expected calibration error (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from collections.abc import Sequence


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> float | None:
    """Σ over bins of confidence: share of items × |accuracy − mean confidence|; bins are (i/n, (i+1)/n], the first
    one holds 0 as well. None without items."""
    pairs = list(zip(confidences, right, strict=True))
    if not pairs:
        return None
    error = 0.0
    for i in range(bins):
        inside = [(c, hit) for c, hit in pairs if (i / bins < c or (i == 0 and c == 0)) and c <= (i + 1) / bins]
        error += abs(sum(hit for _, hit in inside) - sum(c for c, _ in inside)) / len(pairs)
    return error
