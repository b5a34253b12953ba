"""Rows that say the same: exactly, once case, blanks and punctuation are put aside, or nearly.

Near duplicates share a Jaccard index J = |A ∩ B| / |A ∪ B| of their sets of word n-grams. Candidates are found by
MinHash signatures in bands (Broder, 1997; Leskovec et al., "Mining of Massive Datasets", 3.4): 32 bands of 4 hashes
find a pair of J = 0.8 but for one case in 10^7, of J = 0.5 but for one in 8; each candidate's J is then computed
exactly, so that no row is removed by a collision.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from motet.training.data.curation.verdict import Verdict
from motet.training.data.files import RecordSource

BANDS, HASHES_PER_BAND = 32, 4
NGRAM = 3
WORDS = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation, in compatibility form (NFKC); signs where there are none."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return WORDS.findall(plain) or plain.split()


def shingles(found: Sequence[str]) -> frozenset[int]:
    """Hashes (64 bit) of the n-grams of words; of the whole where it is shorter than one n-gram."""
    grams = range(max(len(found) - NGRAM + 1, 1))
    return frozenset(_hash(" ".join(found[i : i + NGRAM])) for i in grams)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets that are not both empty."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def find_duplicates(sources: Sequence[RecordSource], texts: Sequence[str], threshold: float = 0.8) -> list[Verdict]:
    """Removes every row whose text is that of a kept row before it, or near to it (J ≥ threshold, above 0)."""
    index = _Index(threshold)
    exact: dict[str, RecordSource] = {}
    verdicts: list[Verdict] = []
    for source, text in zip(sources, texts, strict=True):
        found = words(text)
        if (first := exact.setdefault(" ".join(found), source)) is not source:
            verdicts.append(Verdict(source, "removed", f"same text as {first}"))
        elif near := index.nearest(grams := shingles(found)):
            verdicts.append(Verdict(source, "removed", f"nearly the text of {near[1]}", near[0]))
        else:
            index.add(source, grams)
    return verdicts


class _Index:
    """Kept rows by the bands of their signatures."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._kept: list[tuple[RecordSource, frozenset[int]]] = []
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        rng = np.random.default_rng(0)
        shape = (BANDS * HASHES_PER_BAND, 1)
        # odd multipliers make h → (a·h + b) mod 2^64 a permutation
        self._factors: NDArray[np.uint64] = rng.integers(0, 2**63, shape, np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets: NDArray[np.uint64] = rng.integers(0, 2**64, shape, np.uint64)

    def _bands(self, grams: frozenset[int]) -> Iterator[tuple[int, bytes]]:
        hashes = np.fromiter(grams, np.uint64, len(grams))
        # the low bits of a product know little of the high ones: the upper half is compared
        signature = ((self._factors * hashes + self._offsets) >> np.uint64(32)).min(1).reshape(BANDS, -1)
        return ((band, part.tobytes()) for band, part in enumerate(signature))

    def nearest(self, grams: frozenset[int]) -> tuple[float, RecordSource] | None:
        """The most similar kept row and its J, where that reaches the threshold."""
        candidates = {row for key in self._bands(grams) for row in self._buckets.get(key, ())}
        scored = [(jaccard(grams, self._kept[row][1]), -row) for row in candidates]
        score, row = max(scored, default=(0.0, 0))
        return (score, self._kept[-row][0]) if score >= self._threshold else None

    def add(self, source: RecordSource, grams: frozenset[int]) -> None:
        for key in self._bands(grams):
            self._buckets[key].append(len(self._kept))
        self._kept.append((source, grams))
