"""Distinct-n (Li et al. 2016, arXiv:1510.03055)."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different word n-grams / all word n-grams over all texts; None where no text has n words."""
    grams = [tuple(words[i : i + n]) for text in texts for words in [text.split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
