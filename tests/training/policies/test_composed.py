"""The composed policy computes the composition's formula, and trains one stream of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan, Prompt, RuleVector, Stream, TokenSet
from motet.composers.rules import MixtureRule, ReluRule
from motet.training.batch import Batch
from motet.training.objectives.logprobs import policy_logprobs
from motet.training.policies.composed import MASKED, ComposedPolicy
from motet.training.policies.through import member_plan, through_plan, views_of
from tests.training.batches import Document, make_batch
from tests.training.tables import Whole, blocks_of

VOCAB = 7
BATCH = make_batch([[Document([1, 2, 3, 4], 2)], [Document([4, 5, 6], 1), Document([1, 5], 1)]])
N = len(BATCH.targets)


@dataclass
class Table(Whole):
    """The same logits (N, V) whatever the batch says."""

    logits: Tensor
    calls: int = 0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += 1
        assert len(batch.targets) == len(self.logits)
        return self.logits.clone()


def table(seed: int, scale: float = 1.0) -> Table:
    generator = torch.Generator().manual_seed(seed)
    return Table(scale * torch.randn(N, VOCAB, dtype=torch.float64, generator=generator))


def policies() -> dict[str, Table]:
    tables = {"large": table(0), "small": table(1), "trained": table(2)}
    for one in tables.values():
        one.logits.requires_grad_()
    return tables


def proxy(alpha: float = 1.0, **changes: Any) -> Plan:
    streams = (Stream("base", "large"), Stream("expert", "trained", alpha), Stream("antiexpert", "small", -alpha))
    return replace(Plan(streams), **changes)


@given(st.floats(-3, 3))
@settings(deadline=None, max_examples=25)
def test_a_linear_plan_is_the_weighted_sum(alpha: float) -> None:
    tables = policies()
    base, expert, anti = (tables[name].logits.log_softmax(-1) for name in ("large", "trained", "small"))
    expected = (base + alpha * (expert - anti)).log_softmax(-1)
    torch.testing.assert_close(ComposedPolicy(proxy(alpha), tables)(BATCH), expected)


def test_gradients_are_exact_and_reach_the_trained_stream_alone() -> None:
    tables = policies()
    trained = tables["trained"].logits

    def composed(logits: Tensor) -> Tensor:
        return ComposedPolicy(proxy(1.5), {**tables, "trained": Table(logits)})(BATCH)

    assert torch.autograd.gradcheck(composed, (trained,))
    composed(trained).logsumexp(-1).sum().backward()
    composed(trained)[:, 0].sum().backward()
    assert trained.grad is not None
    assert trained.grad.abs().max() > 0
    assert tables["large"].logits.grad is None
    assert tables["small"].logits.grad is None


def test_a_stream_of_weight_zero_gets_no_gradient() -> None:
    tables = policies()
    nll = torch.nn.functional.cross_entropy(ComposedPolicy(proxy(0.0), tables)(BATCH), BATCH.targets)
    (gradient,) = torch.autograd.grad(nll, tables["trained"].logits)
    assert not gradient.any()


def test_without_gradients_nothing_is_recorded() -> None:
    with torch.no_grad():
        assert not ComposedPolicy(proxy(), policies())(BATCH).requires_grad


def test_targets_outside_of_the_mask_have_a_constant_and_are_counted() -> None:
    tables = policies()
    peaked = torch.zeros(N, VOCAB, dtype=torch.float64)
    peaked[:, 2] = 5.0
    tables["large"] = Table(peaked)
    policy = ComposedPolicy(proxy(masks=(TokenSet(0, "ratio", 0.5),)), tables)
    logprobs = policy(BATCH)
    inside = torch.arange(VOCAB) == 2
    assert bool((logprobs[:, ~inside] == MASKED).all())
    torch.testing.assert_close(logprobs[:, inside], torch.zeros(N, 1, dtype=torch.float64))
    assert policy.masked_share.item() == pytest.approx((BATCH.targets != 2).double().mean().item())
    nll = torch.nn.functional.cross_entropy(logprobs, BATCH.targets, reduction="none")
    (gradient,) = torch.autograd.grad(nll.sum(), tables["trained"].logits)
    assert gradient.abs().max() < 1e-12
    assert bool(nll.isfinite().all())


def test_the_mask_is_a_constant_of_the_gradient() -> None:
    tables = policies()

    def composed(logits: Tensor) -> Tensor:
        plan = proxy(masks=(TokenSet(1, "ratio", 0.3),))  # of the trained stream itself
        return ComposedPolicy(plan, {**tables, "trained": Table(logits)})(BATCH)

    masked = composed(tables["trained"].logits) == MASKED
    assert 0 < masked.sum() < masked.numel()
    assert torch.autograd.gradcheck(composed, (tables["trained"].logits,))


def test_rules_that_are_no_sums() -> None:
    tables = policies()
    base, trained = (tables[name].logits.log_softmax(-1) for name in ("large", "trained"))
    streams = (Stream("base", "large", 0.3), Stream("other", "trained", 0.7))
    relu = ComposedPolicy(Plan(streams, rule=ReluRule(2.0)), tables)
    torch.testing.assert_close(relu(BATCH), (base - 2 * (trained - base).relu()).log_softmax(-1))
    mixture = ComposedPolicy(Plan(streams, rule=MixtureRule()), tables)
    torch.testing.assert_close(mixture(BATCH), (0.3 * base.exp() + 0.7 * trained.exp()).log())


@pytest.mark.parametrize("rule", [ReluRule(2.0), MixtureRule()])
def test_gradients_of_rules_that_are_no_sums(rule: Any) -> None:
    tables = policies()
    streams = (Stream("base", "large", 0.3), Stream("a", "trained", 0.7), Stream("b", "small", 0.5))
    plan = Plan(streams, rule=rule)

    def composed(logits: Tensor) -> Tensor:
        return ComposedPolicy(plan, {**tables, "trained": Table(logits)})(BATCH)

    assert torch.autograd.gradcheck(composed, (tables["trained"].logits,))


def test_a_rule_vector_reads_the_answer_so_far() -> None:
    tables = policies()
    rules = RuleVector(eos_ramp_tokens=2, eos_ramp_weight=4.0, repetition=1.5, offsets=((3, 0.5),))
    plan = Plan((Stream("base", "trained"),), rules=rules)
    expected = tables["trained"].logits.log_softmax(-1).clone()
    expected[:, 3] += 0.5
    for n in range(N):
        past = [int(BATCH.targets[m]) for m in range(n) if BATCH.owners[m] == BATCH.owners[n]]
        expected[n, 0] += 4.0 * min(1.0, len(past) / 2)
        for token in set(past):
            expected[n, token] -= 1.5
    actual = ComposedPolicy(plan, tables, eos_token_ids=(0,))(BATCH)
    torch.testing.assert_close(actual, expected.log_softmax(-1))


PLANS = {
    "sum": proxy(1.5),
    "mask": proxy(masks=(TokenSet(0, "ratio", 0.3),)),
    "gate": Plan((Stream("base", "large"), Stream("a", "trained", 0.7, inside=TokenSet(0, "nucleus", 0.8)))),
    "scaled": Plan((Stream("base", "large"), Stream("a", "trained", -0.4, temperature=0.5))),
    "rules": Plan(
        (Stream("base", "trained"),), rules=RuleVector(eos_ramp_tokens=2, eos_ramp_weight=4.0, repetition=1.5)
    ),
    "mixture": Plan((Stream("base", "large", 0.3), Stream("a", "trained", 0.7)), rule=MixtureRule()),
}


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("name", PLANS)
def test_blocks_of_rows_give_the_oracles_log_probs(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the gradients of all rows at once, for the trained stream alone."""
    plan, tables = PLANS[name], policies()
    trained = tables["trained"].logits
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = ComposedPolicy(plan, tables, (0,))
    expected = whole(BATCH).log_softmax(-1).gather(-1, BATCH.targets[:, None])[:, 0]
    (slope,) = torch.autograd.grad((expected * weights).sum(), trained)
    monkeypatch.setattr("motet.training.objectives.logprobs.block_rows", blocks_of(rows))
    policy = ComposedPolicy(plan, tables, (0,))
    got = policy_logprobs(policy, BATCH)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(policy.masked_share, whole.masked_share)
    (got * weights).sum().backward()
    torch.testing.assert_close(trained.grad, slope)
    assert tables["large"].logits.grad is None


def test_streams_read_their_view_and_equal_ones_are_computed_once() -> None:
    chat, tables = make_batch([[Document([9, *range(N + 1)], 2)]]), policies()
    seen: list[Batch] = []

    class Spy(Table):
        def __call__(self, batch: Batch) -> Tensor:
            seen.append(batch)
            return tables["trained"](batch)

    batch = replace(BATCH, views={"chat": chat})
    streams = (
        Stream("base", "large"),
        Stream("expert", "trained", 1.0, Prompt(template="chat")),
        Stream("anti", "large", -1.0),
    )
    ComposedPolicy(Plan(streams), {**tables, "trained": Spy(tables["trained"].logits)})(batch)
    assert seen == [chat]
    assert tables["large"].calls == 1
    with pytest.raises(KeyError):
        ComposedPolicy(Plan(streams), tables)(BATCH)


def test_streams_of_unlike_widths_compose_over_the_shared_one() -> None:
    tables = policies()
    wider = torch.cat((tables["large"].logits, torch.full((N, 2), 50.0, dtype=torch.float64)), -1)
    composed = ComposedPolicy(proxy(), {**tables, "large": Table(wider)})(BATCH)
    torch.testing.assert_close(composed, ComposedPolicy(proxy(), tables)(BATCH))


def no_token(text: str) -> None:
    """No text is exactly one token."""


THROUGH = {"strategy": "proxy_tuning", "base": "large", "expert": "trained", "antiexpert": "small"}


def plan_of(**changes: Any) -> Plan:
    return through_plan({**THROUGH, **changes}, ["large", "small"], no_token)


def test_the_plan_of_a_recipe() -> None:
    plan = plan_of(expert={"model": "trained", "template": "chat"}, antiexpert={"model": "small", "prompt": ""})
    assert [stream.model for stream in plan.streams] == ["large", "trained", "small"]
    assert views_of(plan) == {"chat", "none"}
    assert not views_of(plan_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"antiexpert": "smal"}, r"through\.antiexpert: unknown model 'smal'; did you mean 'small'"),
        ({"alpha": 0.0}, r"no stream is the trained model"),
        ({"expert": "small"}, r"no stream is the trained model"),
        ({"base": None}, r"through\.base: required"),
        ({"expert": {"model": "trained", "prompt": "Hello"}}, r"stream 'expert' \(trained\): .*own prompts"),
        ({"expert": {"model": "trained", "last_tokens": 1}}, r"stream 'expert' \(trained\): .*own prompts"),
        ({"strategy": "dynamic", "alpha_max": 1.0}, r"'dynamic' solves for its weight"),
        ({"strategy": "proxy_tune"}, r"through\.strategy: unknown strategy 'proxy_tune'; did you mean 'proxy_tuning'"),
        ({"strenght": 1.0}, r"through\.strenght: unknown field"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        plan_of(**changes)


def test_a_composed_teacher_names_no_trained_model() -> None:
    composition = {**THROUGH, "expert": "chat"}
    plan = member_plan(composition, ["large", "small", "chat"], no_token, "objective.teacher")
    assert [stream.model for stream in plan.streams] == ["large", "chat", "small"]
    with pytest.raises(CompositionError, match=r"objective\.teacher\.expert: unknown model 'trained'"):
        member_plan(THROUGH, ["large", "small"], no_token, "objective.teacher")


def test_a_batch_scored_meanwhile_does_not_disturb_the_backward_pass() -> None:
    """Blocks of a trained head are computed again in the backward pass, before which pairs score two batches."""
    tables = policies()
    policy = ComposedPolicy(PLANS["mask"], tables, (0,))
    first = policy.scores(BATCH)
    policy.policies = {name: Table(table.logits[:1]) for name, table in tables.items()}
    policy.scores(replace(BATCH, targets=BATCH.targets[:1], weights=BATCH.weights[:1], owners=BATCH.owners[:1]))
    policy.policies = tables
    torch.testing.assert_close(first.whole(), policy(BATCH))


def test_a_rule_that_judges_the_prompt_is_no_composition_of_a_run() -> None:
    composition = {"strategy": "discriminator", "base": "large", "wanted": "trained", "unwanted": "small"}
    with pytest.raises(CompositionError, match=r"through.strategy: 'discriminator' judges the prompt"):
        through_plan(composition, ["large", "small"], lambda _: 0)


def test_early_layers_are_in_no_composition_of_a_run() -> None:
    composition = {"strategy": "layer_contrast", "base": "trained"}
    with pytest.raises(CompositionError, match=r"through.strategy: 'layer_contrast' reads early layers"):
        through_plan(composition, ["large"], lambda _: 0)


@pytest.mark.parametrize(
    ("fields", "objective"),
    [
        ({"strategy": "routed", "assistant": "large"}, "gate or router"),
        ({"strategy": "adaptive_temperature"}, "temperature_head"),
        ({"strategy": "adapters", "adapters": "large"}, "similarity_head"),
    ],
)
def test_a_composition_that_asks_a_head_is_none_of_a_run(fields: dict[str, str], objective: str) -> None:
    with pytest.raises(CompositionError, match=rf"train it with the {objective} objective"):
        through_plan({"base": "trained", **fields}, ["large", "small"], lambda _: 0)
