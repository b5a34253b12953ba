"""Measurements → rates and percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import floor
from typing import Any

from motet_client.load.run import Measured

PERCENTILES = (50, 90, 95, 99)
TIMES = {
    "ttft_ms": "first piece",
    "itl_ms": "between pieces",
    "tpot_ms": "per token after the first",
    "e2e_ms": "whole answer",
    "late_ms": "sent after its time",
}


def summary(measured: Sequence[Measured], seconds: float) -> dict[str, Any]:
    """All requests, and those of each model or composition."""
    labels = dict.fromkeys(sorted(one.label for one in measured))
    each = {label: _group([one for one in measured if one.label == label], seconds) for label in labels}
    return {"seconds": seconds, "all": _group(measured, seconds), "each": each}


def _group(measured: Sequence[Measured], seconds: float) -> dict[str, Any]:
    """Counts, rates and times; times are of the requests that were answered to the end."""
    answered = [one for one in measured if one.error is None]
    tokens = sum(one.output_tokens for one in answered)
    longer = [one for one in answered if one.pieces and one.output_tokens > 1]
    return {
        "requests": len(measured),
        "answered": len(answered),
        "errors": dict(Counter(one.error for one in measured if one.error is not None)),
        "prompt_tokens": sum(one.prompt_tokens for one in answered),
        "output_tokens": tokens,
        "requests_per_s": len(answered) / seconds,
        "output_tokens_per_s": tokens / seconds,
        "ttft_ms": _spread(one.pieces[0] for one in answered if one.pieces),
        "itl_ms": _spread(after - before for one in answered for before, after in pairwise(one.pieces)),
        "tpot_ms": _spread((one.end - one.pieces[0]) / (one.output_tokens - 1) for one in longer),
        "e2e_ms": _spread(one.end for one in answered),
        "late_ms": _spread(one.sent for one in measured),
    }


def _spread(seconds: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles in ms; None of nothing."""
    values = sorted(1e3 * value for value in seconds)
    if not values:
        return None
    return {"mean": sum(values) / len(values)} | {f"p{q}": percentile(values, q) for q in PERCENTILES}


def percentile(ascending: Sequence[float], q: float) -> float:
    """The q-th percentile, in a straight line between neighbours."""
    at = (len(ascending) - 1) * q / 100
    low = floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (at - low) * (ascending[high] - ascending[low])


def table(told: dict[str, Any]) -> str:
    """For people: what was answered, and the times of all requests."""
    lines = [_counts("all", told["all"]), *(_counts(label, group) for label, group in told["each"].items())]
    heads = ["mean", *(f"p{q}" for q in PERCENTILES)]
    lines += ["", f"{'ms':28}" + "".join(f"{head:>10}" for head in heads)]
    spreads = ((name, told["all"][key]) for key, name in TIMES.items())
    lines += [f"{name:28}" + "".join(f"{spread[head]:10.1f}" for head in heads) for name, spread in spreads if spread]
    return "\n".join(lines)


def _counts(label: str, group: dict[str, Any]) -> str:
    errors = ", ".join(f"{count} × {error}" for error, count in group["errors"].items())
    rates = f"{group['requests_per_s']:.2f} requests/s, {group['output_tokens_per_s']:.1f} tokens/s"
    return (
        f"{label}: {group['answered']} of {group['requests']} answered, {rates}{f'; errors: {errors}' * bool(errors)}"
    )
