"""Adapters of one backbone, weighted by how near the prompt is to what each of them was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from motet.composers.plan import Plan
from motet.composers.roles import Roles
from motet.composers.rules import AdaptersRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy, rule_plan
from motet.composers.strategies.strategy import Request


class Adapters(RuleStrategy, frozen=True):
    """`z = share·L_base + (1 − share) Σ_c w_c L_c`, `w = softmax_c((cos(h, μ_c) − m_c) / σ_c)`

    Ensembles of Low-Rank Expert Adapters (Li et al. 2025, arXiv:2502.00089). Each adapter was trained on one cluster of
    prompts, in the paper from an adapter of all data on, with which the backbone is its L_base. h is the feature of the
    request's prompt, μ_c the mean of the features of cluster c, m_c and σ_c mean and standard deviation of the cosine
    of that cluster's own prompts with μ_c. All of these are a head of the base's
    folder, which the objective `similarity_head` makes. The weights are decided once, behind the last token of the
    prompt, and hold for the whole answer; of a scored prompt, every token has those of the prompt up to it. The paper's
    feature is a projected gradient of the instruction, a backward pass for every request; here it is the base's last
    hidden state behind the prompt, which the forward computes anyhow, as the paper's own comparison with embeddings of
    the instruction has it. With `share` 0.5 the base counts as much as all adapters together: greedily the tokens of
    `L_base + Σ_c w_c L_c`, while weights that sum to 1 make temperature 1 a geometric mean. The trace reports w as
    `alpha`. A `schedule` multiplies what the adapters add to the base.
    """

    strategy: Literal["adapters"] = "adapters"
    adapters: Roles
    """The adapters, in the order of the clusters that the base's head has; models of its tokens do as well."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """Weight of the base itself; 0 leaves the adapters alone, 1 the base."""

    def plan(self, request: Request) -> Plan:
        plan = rule_plan(self, self.parts(request), self.rule())
        return plan if self.schedule is None else _refilled(plan)

    def rule(self) -> Rule:
        return AdaptersRule()

    def parts(self, request: Request) -> tuple[Part, ...]:
        rest = 1.0 - self.share
        others = ((f"adapter_{c}", role.voice, rest) for c, role in enumerate(self.adapters, 1))
        return ("base", request.base, self.share), *others


def _refilled(plan: Plan) -> Plan:
    """The base's weight grows by what the schedule takes away from the adapters."""
    base, *others = plan.streams
    scheduled = tuple((schedule, -weight) for schedule, weight in others[0].scheduled)
    return replace(plan, streams=(replace(base, scheduled=scheduled), *others))
