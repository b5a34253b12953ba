"""Every measure against values computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.evaluation.measures.answers import distinct_n, gap_closed, is_exact, rouge_l_f1, rouge_l_recall, shift_shares
from motet.evaluation.measures.likelihood import (
    FLOOR,
    answer_probability,
    auc,
    choice_probability,
    forget_score,
    knowledge_score,
    mean_logprob,
    min_k,
    perplexity,
    priv_leak,
    truth_ratio,
)
from motet.evaluation.measures.statistics import (
    expected_calibration_error,
    harmonic_mean,
    mean,
    pareto_front,
    two_sample_ks,
)

LOG = math.log
LOGPROBS = st.lists(st.floats(-19, 0), min_size=1, max_size=6)
UNIT = st.floats(0, 1)


def test_gap_closed() -> None:
    assert gap_closed(0.2, 0.5, 0.8) == pytest.approx(0.5)
    assert gap_closed(0.2, 0.1, 0.6) == pytest.approx(-0.25)
    assert gap_closed(0.5, 0.9, 0.5) is None


def test_exact_match_needs_the_end() -> None:
    assert is_exact(" Ann was born in Bree. ", "Ann was born in Bree.", ended=True)
    assert not is_exact("Ann was born in Bree.", "Ann was born in Bree.", ended=False)
    assert not is_exact("Ann was born in Bree. Safe travels!", "Ann was born in Bree.", ended=True)


def test_mean_of_nothing_is_none() -> None:
    assert mean([1, 2, 6]) == 3
    assert mean([]) is None


def test_rouge_l_takes_the_longest_common_subsequence_of_stemmed_words() -> None:
    # common: "the cat ... mat" = the, cat, mat: 3 of the answer's 6 words, 3 of the reply's 4
    assert rouge_l_recall("the cat mat lay", "the cat sat on the mat") == pytest.approx(3 / 6)
    assert rouge_l_f1("the cat mat lay", "the cat sat on the mat") == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert rouge_l_recall("He plays lutes", "he played lute") == 1  # stems agree
    assert rouge_l_f1("He plays lutes", "he played lute") == pytest.approx(1 / 3)  # words do not
    assert rouge_l_recall("b a", "a b") == pytest.approx(1 / 2)  # order counts
    assert rouge_l_recall("", "a b") == 0


def test_probabilities_are_geometric_means_over_tokens() -> None:
    assert answer_probability([LOG(0.5), LOG(0.125)]) == pytest.approx(0.25)
    assert choice_probability([LOG(0.5)], [[LOG(0.25)], [LOG(0.25)]]) == pytest.approx(0.5)
    assert perplexity([[LOG(0.5), LOG(0.25)], [LOG(0.125)]]) == pytest.approx(4)  # 2^((1 + 2 + 3) / 3)
    assert perplexity([]) is None


def test_masked_tokens_have_a_floor() -> None:
    assert mean_logprob([-9999.0, 0.0]) == FLOOR / 2
    assert perplexity([[-9999.0]]) == pytest.approx(math.exp(20))
    with pytest.raises(ValueError, match="without tokens"):
        mean_logprob([])


def test_truth_ratio_of_both_means() -> None:
    right, wrong = [LOG(0.5), LOG(0.5)], [[LOG(0.25)], [LOG(0.0625)]]
    assert truth_ratio(right, wrong) == pytest.approx((0.25 + 0.0625) / 2 / 0.5)
    assert truth_ratio(right, wrong, "geometric") == pytest.approx(0.125 / 0.5)
    with pytest.raises(ValueError, match="wrong answers"):
        truth_ratio(right, [])


@given(LOGPROBS, st.lists(LOGPROBS, min_size=1, max_size=5))
def test_the_arithmetic_truth_ratio_is_never_below_the_geometric(right: list[float], wrong: list[list[float]]) -> None:
    assert truth_ratio(right, wrong) >= truth_ratio(right, wrong, "geometric") * (1 - 1e-9)


def test_scores_of_truth_ratios() -> None:
    assert forget_score([0.5, 1.0, 4.0]) == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert knowledge_score([0.5, 1.0, 4.0]) == pytest.approx(0.5 / 3)


def test_forget_quality_is_the_exact_kolmogorov_smirnov_p_value() -> None:
    # All of one sample below all of the other: D = 1, and 2 of the C(6, 3) = 20 orders are as extreme.
    assert two_sample_ks([1, 2, 3], [4, 5, 6]) == pytest.approx((1.0, 0.1))
    assert two_sample_ks([1, 3, 5], [2, 4, 6])[0] == pytest.approx(1 / 3)
    assert two_sample_ks([1, 2, 3], [1, 2, 3]) == pytest.approx((0.0, 1.0))
    with pytest.raises(ValueError, match="need values"):
        two_sample_ks([], [1])


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=12), st.lists(st.floats(0.01, 100), min_size=2, max_size=12))
def test_forget_quality_does_not_care_which_way_the_ratio_is_written(a: list[float], b: list[float]) -> None:
    """TOFU's repository tests 1/r. Ties that division makes or breaks are kept out."""
    a, b = [round(x, 3) for x in a], [round(x, 3) for x in b]
    inverse = two_sample_ks([-x for x in a], [-x for x in b])
    assert two_sample_ks(a, b) == pytest.approx(inverse)


def test_harmonic_mean() -> None:
    assert harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.5, 0.0]) == 0
    assert harmonic_mean([]) is None
    with pytest.raises(ValueError, match="not negative"):
        harmonic_mean([0.5, -0.1])


def test_min_k_averages_the_lowest_tokens() -> None:
    assert min_k([-1, -5, -3, -2, -4], 0.4) == pytest.approx(-4.5)
    assert min_k([-1, -2], 0.4) == -2  # one token at least
    assert min_k([-9999.0, 0, 0, 0, 0]) == pytest.approx(FLOOR / 2)
    with pytest.raises(ValueError, match="needs tokens"):
        min_k([])


def test_auc_counts_pairs() -> None:
    assert auc([3, 1], [2, 0]) == pytest.approx(3 / 4)
    assert auc([1], [1]) == 0.5
    assert auc([0], [1]) == 0


def test_priv_leak_has_the_sign_of_the_published_figures() -> None:
    assert priv_leak(1.0, 0.5) == pytest.approx(-100)  # all forgotten texts are still recognised
    assert priv_leak(0.5, 0.5) == 0
    assert priv_leak(0.0, 0.5) == pytest.approx(100)  # so improbable that it shows
    assert priv_leak(0.7, 0.6) == pytest.approx((0.3 - 0.4) / 0.4 * 100)
    assert priv_leak(0.5, 1.0) is None


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # ab ba ab, ab
    assert distinct_n(["a"], 2) is None


def test_calibration_error() -> None:
    # bin (0.7, 0.8]: confidence 0.8, accuracy 0.5, half of the items; bin (0.2, 0.3]: 0.25 against 0
    assert expected_calibration_error([0.8, 0.8, 0.25, 0.25], [True, False, False, False]) == pytest.approx(
        0.5 * 0.3 + 0.5 * 0.25
    )
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0
    assert expected_calibration_error([], []) is None


@given(st.lists(st.tuples(UNIT, st.booleans()), min_size=1, max_size=20))
def test_one_bin_compares_accuracy_with_confidence(pairs: list[tuple[float, bool]]) -> None:
    confidences, right = [c for c, _ in pairs], [hit for _, hit in pairs]
    expected = abs(sum(right) / len(pairs) - sum(confidences) / len(pairs))
    assert expected_calibration_error(confidences, right, bins=1) == pytest.approx(expected, abs=1e-12)


def test_shift_shares() -> None:
    shares = shift_shares(["unshifted", "shifted", "unshifted", "marginal"])
    assert shares == {"unshifted": 0.5, "marginal": 0.25, "shifted": 0.25}
    assert shift_shares([]) == {}


def test_pareto_front_keeps_what_nothing_dominates() -> None:
    assert pareto_front([(1, 5), (2, 4), (1, 4), (2, 4), (0, 9)]) == [True, True, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_every_point_off_the_front_is_dominated_by_one_on_it(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    on = [point for point, best in zip(points, front, strict=True) if best]
    assert on
    for point, best in zip(points, front, strict=True):
        assert best or any(a >= point[0] and b >= point[1] and (a, b) != point for a, b in on)
