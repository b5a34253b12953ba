"""Mixture: the ensemble in probability space."""

from __future__ import annotations

from typing import Literal

from motet.composers.rules import MixtureRule, Rule
from motet.composers.strategies.ensemble import Ensemble


class Mixture(Ensemble, frozen=True):
    """`z = log Σ_k w_k p_k`

    The arithmetic mean of the members' distributions; of its calibration: Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474). The `product` is the geometric
    mean. `members` are all of the ensemble, the base among them: the first member whose model is the request's, or the
    first of all if the request leaves it open.
    """

    strategy: Literal["mixture"] = "mixture"

    def rule(self) -> Rule:
        return MixtureRule()
