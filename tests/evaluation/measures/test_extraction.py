"""leak@k and extraction strength against what they are by definition: all subsets, all beginnings."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.evaluation.measures.answers import names
from motet.evaluation.measures.extraction import extraction_strength, leak_at_k
from motet.evaluation.measures.statistics import bootstrap_interval

UNIT = st.floats(0, 1)


@given(st.lists(UNIT, min_size=1, max_size=8), st.integers(1, 8))
def test_leak_at_k_is_the_mean_over_all_subsets_of_the_best(scores: list[float], k: int) -> None:
    subsets = [max(subset) for subset in combinations(scores, k)]
    expected = float(np.mean(subsets, dtype=np.float64)) if subsets else None
    assert leak_at_k(scores, k) == (None if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(("n", "c", "k"), [(100, 0, 10), (100, 1, 1), (100, 3, 10), (1000, 7, 100), (2000, 1, 1000)])
def test_of_hits_and_misses_it_is_pass_at_k(n: int, c: int, k: int) -> None:
    pass_at_k = 1 - math.comb(n - c, k) / math.comb(n, k)  # whole numbers, then one division
    assert leak_at_k([1.0] * c + [0.0] * (n - c), k) == pytest.approx(pass_at_k, abs=1e-12)


def test_leak_at_k_has_no_bias() -> None:
    """Hits of probability p in n tries, all outcomes weighed exactly: the mean is 1 − (1 − p)^k, unlike that of
    1 − (1 − c/n)^k."""
    n, k, p = 12, 5, 0.07
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    leaks = [leak_at_k([1.0] * c + [0.0] * (n - c), k) for c in range(n + 1)]
    true = 1 - (1 - p) ** k
    assert sum(w * leak for w, leak in zip(weights, leaks, strict=True) if leak is not None) == pytest.approx(true)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights)) != pytest.approx(true, rel=0.01)


@given(st.lists(UNIT, min_size=5, max_size=30))
def test_more_tries_leak_no_less(scores: list[float]) -> None:
    leaks = [leak for k in range(1, len(scores) + 1) if (leak := leak_at_k(scores, k)) is not None]
    assert leaks[0] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert leaks[-1] == pytest.approx(max(scores), abs=1e-12)
    assert all(a <= b + 1e-12 for a, b in pairwise(leaks))


def test_fewer_samples_than_tries_tell_nothing() -> None:
    assert leak_at_k([1.0], 2) is None
    with pytest.raises(ValueError, match="at least 1, got 0"):
        leak_at_k([1.0], 0)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_what_the_shortest_sufficient_beginning_leaves(greedy: list[bool]) -> None:
    shortest = min(m for m in range(len(greedy) + 1) if all(greedy[m:]))
    assert extraction_strength(greedy) == 1 - shortest / len(greedy)


def test_extraction_strength_of_extremes() -> None:
    assert extraction_strength([True] * 4) == 1
    assert extraction_strength([True, True, True, False]) == 0
    assert extraction_strength([False, True, False, True]) == 0.25
    with pytest.raises(ValueError, match="without tokens"):
        extraction_strength([])


def test_values_are_named_as_whole_words() -> None:
    assert names("By trade she is a Poet.", "poet")
    assert not names("She writes poetry.", "poet")
    assert names("Founded 723 (in Bree?).", "Bree")


def test_the_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    """Of 400 samples of 80 uniform values, a 90 % interval holds the mean 0.5 in 360 ± 6; fewer than 330 or more than
    385 are 5 and 4 standard deviations away: once in 10⁴ implementations that are right. The seeds are fixed."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(400):
        found = bootstrap_interval(list(rng.random(80)), level=0.9, draws=500, seed=seed)
        assert found is not None
        inside += found[0] <= 0.5 <= found[1]
    assert 330 <= inside <= 385


def test_the_bootstrap_of_little() -> None:
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.25, 0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.0, 1.0, 1.0], seed=3) == bootstrap_interval([0.0, 1.0, 1.0], seed=3)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        bootstrap_interval([1.0], level=1.5)
