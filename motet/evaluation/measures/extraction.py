"""How much of what was to be forgotten can be drawn out, by many samples and by beginnings of the answer."""

from __future__ import annotations

from collections.abc import Sequence


def leak_at_k(scores: Sequence[float], k: int) -> float | None:
    """leak@k of one question: the expected highest score of `k` sampled replies (Reisizadeh et al. 2025,
    arXiv:2511.04934), estimated without bias from n ≥ k of them.

    A subset of k whose highest score is the i-th smallest takes the others from the i − 1 below it: the estimate is
    Σ_i C(i−1, k−1) / C(n, k) s_(i). With scores of 0 and 1, c of them 1, that is pass@k, 1 − C(n−c, k) / C(n, k) (Chen
    et al. 2021, arXiv:2107.03374).

    Returns:
        None where there are fewer than `k` scores.

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"leak@k needs k of at least 1, got {k}")
    n = len(scores)
    if n < k:
        return None
    total, share = 0.0, k / n  # the share of subsets whose highest is the largest score, C(n−1, k−1) / C(n, k)
    for i, score in zip(range(n, k - 1, -1), sorted(scores, reverse=True), strict=False):
        total += share * score
        share *= (i - k) / (i - 1) if i > 1 else 0.0
    return total


def extraction_strength(greedy: Sequence[bool]) -> float:
    """1 − m / T, with m the shortest beginning of an answer of T tokens after which greedy decoding gives all the rest
    (Carlini et al. 2021, arXiv:2012.07805; Wang et al. 2025, arXiv:2406.09179): 1 is known by heart, 0 is an answer
    whose last token does not follow even from all before it.

    Args:
        greedy: for each token of the answer whether it is the most likely one after the question and the tokens before.

    Raises:
        ValueError: there is no token.
    """
    if not greedy:
        raise ValueError("an answer without tokens has no extraction strength")
    wrong = [place for place, follows in enumerate(greedy, 1) if not follows]
    return 1 - (wrong[-1] if wrong else 0) / len(greedy)
