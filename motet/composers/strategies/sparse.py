"""Sparse ensembles: composed only where the members disagree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from motet.composers.rules import Rule, SparseRule
from motet.composers.strategies.ensemble import Ensemble


class Sparse(Ensemble, frozen=True):
    """`z = log Σ_k w_k p_k` where the members disagree, else `L_base`

    When to Ensemble: Identifying Token-Level Points for Stable and Fast LLM Ensembling (Yun et al. 2025,
    arXiv:2510.15346). Members agree on the base's most likely token where all find it the most likely, or give it
    more than `agreement` of their probability, `Σ_k w_k p_k / Σ_k w_k`. What the paper does about unlike tokenizers
    has no place here: members share one. `members` as in `mixture`. The trace's `alpha` is 1 where they were composed.
    """

    strategy: Literal["sparse"] = "sparse"
    agreement: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """Mean probability of a token above which members agree on it; 1: only by their most likely tokens."""

    def rule(self) -> Rule:
        return SparseRule(self.agreement)
