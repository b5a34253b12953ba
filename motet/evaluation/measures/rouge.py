"""ROUGE-L (Lin 2004): the longest common subsequence of words, from the `rouge-score` package."""

from __future__ import annotations

from functools import cache
from typing import Any, cast


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(reply: str, answer: str) -> float:
    """Words of the longest common subsequence / words of `answer`, in [0, 1]; words are stemmed (Porter), as TOFU's
    and MUSE's repositories do, and lower-cased. 0 where the answer has no words."""
    return cast(float, _scorer().score(answer, reply)["rougeL"].recall)


def rouge_l_f1(reply: str, answer: str) -> float:
    """Harmonic mean of ROUGE-L's recall and precision: what MUSE reports as verbatim and knowledge memorisation."""
    return cast(float, _scorer().score(answer, reply)["rougeL"].fmeasure)
