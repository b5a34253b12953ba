"""ROUGE-L (Lin 2004): the longest common subsequence of words, from the `rouge-score` package."""

from __future__ import annotations

from functools import cache
from typing import Any, cast


@cache
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stem)


def rouge_l_recall(reply: str, answer: str) -> float:
    """Words of the longest common subsequence / words of `answer`, in [0, 1]; words are lower-cased and stemmed
    (Porter), as in TOFU's repository. 0 where the answer has no words."""
    return cast(float, _scorer(True).score(answer, reply)["rougeL"].recall)


def rouge_l_f1(reply: str, answer: str) -> float:
    """Harmonic mean of ROUGE-L's recall and precision; words are lower-cased, not stemmed: MUSE's repository's measure
    of verbatim and knowledge memorisation."""
    return cast(float, _scorer(False).score(answer, reply)["rougeL"].fmeasure)
