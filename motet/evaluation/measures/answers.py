"""What answers say: matches, words in common, diversity, and how far a composition moves its base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, cast


def is_exact(reply: str, answer: str, *, ended: bool) -> bool:
    """The reply is the answer word by word, and ended there by itself."""
    return ended and reply.strip() == answer.strip()


def names(reply: str, value: str) -> bool:
    """Whether the reply has the value in it, as whole words, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", reply, re.IGNORECASE) is not None


def gap_closed(base: float, composed: float, tuned: float) -> float | None:
    """(composed − base) / (tuned − base): 0 is the base alone, 1 the directly tuned larger model (Mitchell et al.
    2023, arXiv:2310.12962; Liu et al. 2024, arXiv:2401.08565).

    None where the tuned model is not better than the base: there is no gap.
    """
    return (composed - base) / (tuned - base) if tuned > base else None


@cache
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stem)


def rouge_l_recall(reply: str, answer: str) -> float:
    """ROUGE-L (Lin 2004): words of the longest common subsequence / words of `answer`, in [0, 1]; words are lower-cased
    and stemmed (Porter), as in TOFU's repository. 0 where the answer has no words."""
    return cast(float, _scorer(True).score(answer, reply)["rougeL"].recall)


def rouge_l_f1(reply: str, answer: str) -> float:
    """Harmonic mean of ROUGE-L's recall and precision; words are lower-cased, not stemmed: MUSE's repository's measure
    of verbatim and knowledge memorisation."""
    return cast(float, _scorer(False).score(answer, reply)["rougeL"].fmeasure)


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv:1510.03055): different word n-grams / all word n-grams over all texts; None
    where no text has n words."""
    grams = [tuple(words[i : i + n]) for text in texts for words in [text.split()] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def shift_shares(shifts: Iterable[str]) -> dict[str, float]:
    """Shares of tokens by their rank under the base: unshifted (0), marginal (1, 2), shifted (3 and above): the
    diagnostic of URIAL (Lin et al. 2023, arXiv:2312.01552). Empty without tokens."""
    counts = Counter(shifts)
    total = counts.total()
    return {name: counts[name] / total for name in ("unshifted", "marginal", "shifted")} if total else {}
