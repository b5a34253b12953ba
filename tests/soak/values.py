"""Values that break parsers: numbers, texts, lists and nesting beyond what anybody means."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Rng = random.Random
PLACE = re.compile(r'"@raw:(\d+)@"')

NUMBERS: tuple[int | float, ...] = (
    0, 1, -1, 2, 7, 127, 128, 255, 256, 400, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30,
    10**400, -0.0, 0.5, 1.0, 1.5, -2.5, 1e-9, 1e-45, 5e-324, 1e30, 1.7976931348623157e308, -1e308,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\t", "\x00", "\x1b[31m", "\r\nx: y", "a", "é", "é", "日本語", "🜂", "👩‍👩‍👧‍👦", "\u202eabc",
    "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\u2028", "\x85", "ﷺ", "Z̷̡̛", "ß", "İ", "<|end|>", "<s>", "</s>",
    "{{7*7}}", "%s%n",
    "../../etc/passwd", "large", "null", "true", "NaN", "1", "-1", "id:1", "http://127.0.0.1/", "${jndi:x}", "\\", '"',
)  # fmt: skip

PLAIN: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None})
ITEMS: tuple[Any, ...] = ("a", 0, None, -1, {}, [], "é", 1.5, 399)


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON that the encoder would not write: halves of surrogates, NaN, 5,000 digits, 10,000 brackets."""

    text: str


def literals(rng: Rng) -> Raw:
    return Raw(
        rng.choice((
            "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E-999", "-0", "01", "1.", "9" * 400,
            '"\\ud800"', '"\\udc00x"', '"\\u0000"',
            '{"a":1,"a":2}', "'x'", "None", "undefined", "/**/1",
        ))
    )  # fmt: skip


def digits(rng: Rng) -> Raw:
    """Numbers around what Python refuses to read (4,300 digits), and beyond."""
    return Raw(rng.choice(("9" * 4300, "9" * 4301, "-" + "9" * 5000, "0." + "0" * 3000 + "1", "9" * 100_000)))


def nesting(rng: Rng) -> Raw:
    """Lists in lists or objects in objects, from a few dozen to many thousands."""
    depth = rng.choice((20, 60, 100, 200, 320, 500, 900, 1100, 3000, 10_000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"type":"array","items":', "}]")))
    return Raw(opening * depth + "0" + closing * depth)


def long_list(rng: Rng) -> list[Any]:
    count = rng.choice((5, 33, 129, 1025, 5000, 20_000))
    return [rng.choice(ITEMS)] * count


def long_text(rng: Rng) -> str:
    unit = rng.choice(("a", " ", "\n", "é", "🜂", "the town of ", "\x00", "<|end|>", "a\n", "\\", '"', "{", "("))
    return unit * (rng.choice((300, 3000, 30_000, 100_000)) // len(unit))


def odd_text(rng: Rng) -> str:
    return "".join(rng.choice(TEXTS) for _ in range(rng.randint(1, 4)))


def odd_object(rng: Rng) -> dict[str, Any]:
    return {odd_text(rng): rng.choice(ITEMS) for _ in range(rng.choice((0, 1, 3, 200)))}


KINDS: tuple[tuple[int, Callable[[Rng], Any]], ...] = (
    (8, lambda rng: rng.choice(NUMBERS)),
    (6, lambda rng: rng.choice(TEXTS)),
    (5, lambda rng: rng.choice(PLAIN)),
    (3, odd_text),
    (2, literals),
    (2, odd_object),
)
EXPLOSIVE: tuple[tuple[int, Callable[[Rng], Any]], ...] = ((2, nesting), (1, digits), (2, long_list), (2, long_text))
EXPLOSIVE_FACTOR = 5  # values are smaller than grammars, and there are more of them


def weighted(rng: Rng, kinds: Sequence[tuple[int, T]]) -> T:
    return rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]


def odd(rng: Rng, explosive: float) -> Any:
    """`explosive`: a fifth of the share of values that are long or deep."""
    return weighted(rng, EXPLOSIVE if rng.random() < EXPLOSIVE_FACTOR * explosive else KINDS)(rng)


def encode(value: Any) -> str:
    """JSON, with every `Raw` written as it is."""
    raws: list[str] = []

    def keep(raw: Any) -> str:
        raws.append(raw.text)
        return f"@raw:{len(raws) - 1}@"

    text = json.dumps(value, ensure_ascii=False, default=keep)
    return PLACE.sub(lambda place: raws[int(place[1])], text)
