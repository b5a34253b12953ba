"""Loss weights of parts of a text.

A record's `spans` are lists [start, end, weight] over the characters of its text or completion, the weight a number
or the name of a kind that the recipe weighs in `span_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from motet.training.data.errors import RowError
from motet.training.data.json_text import is_list

REST = "rest"  # in `span_weights`, the weight of tokens outside of spans


class Span(NamedTuple):
    """Characters start ≤ i < stop."""

    start: int
    stop: int
    weight: float | str


def parse_spans(value: object, text: str) -> tuple[Span, ...]:
    """Validated spans of `text`, sorted. Raises RowError."""
    if value is None:
        return ()
    if not is_list(value):
        raise RowError(f"spans: expected a list of [start, end, weight], got {type(value).__name__}")
    spans = sorted((_span(item, len(text)) for item in value), key=lambda span: (span.start, span.stop))
    for one, other in pairwise(spans):
        if other.start < one.stop:
            raise RowError(f"spans: {list(one)} and {list(other)} overlap")
    return tuple(spans)


def _span(item: object, length: int) -> Span:
    if not is_list(item) or len(item) != 3:
        raise RowError(f"spans: expected [start, end, weight], got {item!r}")
    start, stop, weight = item
    if not _is_integer(start) or not _is_integer(stop) or not 0 <= start < stop <= length:
        raise RowError(f"spans: {item!r} is out of bounds; allowed: 0 <= start < end <= {length}")
    if isinstance(weight, str):
        return Span(start, stop, weight)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise RowError(f"spans: the weight of {item!r} is no finite number >= 0 and no kind's name")
    return Span(start, stop, float(weight))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def char_weights(text: str, spans: Sequence[Span], weight_of: Mapping[str, float]) -> list[float]:
    """A weight for each character; spaces count to what follows them. Kinds that are not weighed are as the rest."""
    rest = weight_of.get(REST, 1.0)
    weights = [rest] * len(text)
    for start, stop, weight in spans:
        value = weight_of.get(weight, rest) if isinstance(weight, str) else weight
        weights[start:stop] = [value] * (stop - start)
    for i in reversed(range(len(text) - 1)):
        if text[i] == " ":
            weights[i] = weights[i + 1]
    return weights


def token_weights(offsets: Sequence[tuple[int, int]], chars: Sequence[float], shift: int, rest: float) -> list[float]:
    """The weight of each token: that of its last character.

    Args:
        offsets: (start, stop) of each token in the tokenised text.
        chars: weights of the characters of a part of that text, which begins at `shift`.
        rest: the weight of tokens outside of that part.
    """
    last = [stop - 1 - shift if stop > start else -1 for start, stop in offsets]
    return [chars[i] if 0 <= i < len(chars) else rest for i in last]
