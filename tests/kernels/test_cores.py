"""The rules that are no weighted sum, against formulas written out in NumPy (float64), and the laws they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows, reference_logprobs
from motet.composers.rules import (
    BudgetRule,
    CascadeRule,
    DiscriminatorRule,
    DynamicRule,
    LinearRule,
    MixtureRule,
    ReluRule,
    RoutedRule,
    Rule,
    SparseRule,
)
from motet.kernels.reference import composed

Array = npt.NDArray[np.float64]


def normalised(x: Array) -> Array:
    return x - np.logaddexp.reduce(x)


def streams_of(seed: int, vocab: int, count: int = 3, scale: float = 2.0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, vocab)) * scale


def plan_of(rule: Rule, *weights: float) -> Plan:
    return Plan(tuple(Stream(f"s{k}", "m", w) for k, w in enumerate(weights)), rule=rule)


def run(rule: Rule, logits: Array, weights: Sequence[float] | None = None, state: Sequence[float] = (0, 0, 0)) -> Array:
    plan = plan_of(rule, *(weights or [1.0, *[0.0] * (len(logits) - 1)]))
    tensor = torch.from_numpy(logits[:, None])
    return reference_logprobs(plan, tensor, state=torch.tensor([state], dtype=torch.float64))[0].numpy()


def kl(p: Array, q: Array) -> float:
    return float((np.exp(p) * (p - q)).sum())


def moved(base: Array, delta: Array, alpha: float) -> Array:
    return normalised(base + alpha * delta)


def by_scan(function: npt.NDArray[np.float64], grid: Array) -> float:
    return float(grid[int(np.argmin(function))])


SEEDS = st.integers(0, 10_000)
VOCABS = st.sampled_from([1, 2, 31, 257])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, vocab=VOCABS, alpha=st.floats(0, 5))
def test_relu_difference(seed: int, vocab: int, alpha: float) -> None:
    x = streams_of(seed, vocab, 2)
    base, reinforced = normalised(x[0]), normalised(x[1])
    expected = normalised(base - alpha * np.maximum(reinforced - base, 0))
    np.testing.assert_allclose(run(ReluRule(alpha), x), expected, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, vocab=VOCABS, weights=st.lists(st.floats(0.01, 3), min_size=1, max_size=5))
def test_mixture(seed: int, vocab: int, weights: list[float]) -> None:
    x = streams_of(seed, vocab, len(weights))
    p = sum(w * np.exp(normalised(row)) for w, row in zip(weights, x, strict=True))
    np.testing.assert_allclose(run(MixtureRule(), x, weights), np.log(p / np.sum(p)), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, vocab=VOCABS, gate=st.floats(0, 1), threshold=st.one_of(st.none(), st.floats(0, 1)))
def test_routed(seed: int, vocab: int, gate: float, threshold: float | None) -> None:
    x = streams_of(seed, vocab, 2)
    share = gate if threshold is None else float(gate > threshold)
    p = (1 - share) * np.exp(normalised(x[0])) + share * np.exp(normalised(x[1]))
    np.testing.assert_allclose(np.exp(run(RoutedRule(threshold), x, state=(gate, 0, 0))), p, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    vocab=VOCABS,
    omega=st.floats(0, 40),
    mass=st.floats(0.05, 1),
    posterior=st.floats(0.1, 0.95),
    past=st.tuples(st.floats(-50, 0), st.floats(-50, 0), st.integers(0, 20)),
)
def test_discriminator(
    seed: int, vocab: int, omega: float, mass: float, posterior: float, past: tuple[float, float, int]
) -> None:
    x = np.stack([normalised(row) for row in streams_of(seed, vocab)])
    s = ((past[0] + x[1]) - (past[1] + x[2])) / (past[2] + 1)
    probability = 1 / (1 + np.exp(-s))
    z = x[0] + omega * np.log(probability)
    weight = np.exp(normalised(z))
    keep = np.zeros(vocab, dtype=bool)
    total = 0.0
    for token in np.argsort(-s, kind="stable"):
        if total < mass or mass >= 1:
            keep[token] = True
        total += weight[token]
    keep |= probability >= posterior
    got = run(DiscriminatorRule(omega, mass, posterior), x, state=past)
    if np.array_equal(got > -np.inf, keep):
        np.testing.assert_allclose(got, normalised(np.where(keep, z, -np.inf)), atol=1e-9)
    else:  # rounding at the boundary may keep one token more or less
        assert abs(int((got > -np.inf).sum()) - int(keep.sum())) <= 1


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, vocab=st.sampled_from([2, 31, 257]), scale=st.floats(0.05, 3), alpha_max=st.floats(0.5, 4))
def test_dynamic_matches_the_divergences(seed: int, vocab: int, scale: float, alpha_max: float) -> None:
    x = np.stack([normalised(row) for row in streams_of(seed, vocab, scale=scale)])
    delta = x[1] - x[2]
    target = kl(x[1], x[2])
    low, high = 0.0, alpha_max
    for _ in range(80):  # bisection, written out
        middle = (low + high) / 2
        low, high = (middle, high) if kl(moved(x[0], delta, middle), x[0]) < target else (low, middle)
    got = run(DynamicRule(alpha_max), x, (1.0, 1.0, -1.0))
    np.testing.assert_allclose(got, moved(x[0], delta, high), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, vocab=st.sampled_from([2, 31, 257]), weights=st.lists(st.floats(-2, 2), min_size=2, max_size=3))
def test_dynamic_pairs_are_solved_alone_then_weighted(seed: int, vocab: int, weights: list[float]) -> None:
    x = np.stack([normalised(row) for row in streams_of(seed, vocab, 1 + 2 * len(weights), scale=1.0)])
    expected, alphas = x[0], list[float]()
    for i, w in enumerate(weights):
        expert, anti = x[1 + 2 * i], x[2 + 2 * i]
        low, high = 0.0, 2.0
        for _ in range(80):
            middle = (low + high) / 2
            reaches = kl(moved(x[0], expert - anti, middle), x[0]) >= kl(expert, anti)
            low, high = (low, middle) if reaches else (middle, high)
        alphas.append(high)
        expected = expected + w * high * (expert - anti)
    plan = plan_of(DynamicRule(), 1.0, *(sign * w for w in weights for sign in (1, -1)))
    rows = compose_rows([plan], [range(len(x))], torch.from_numpy(x))
    got = composed(torch.from_numpy(x), rows)
    np.testing.assert_allclose(got.logprobs[0].numpy(), normalised(expected), atol=1e-6)
    np.testing.assert_allclose(got.alpha[0].numpy(), alphas, atol=1e-6)


def test_dynamic_identities_of_several_pairs() -> None:
    """Halves of one pair are the pair; a pair of equals and a pair of weight 0 are nothing, whatever they ban."""
    x = streams_of(12, 60, 5, scale=1.0)
    like_base = np.stack([x[0], x[1], x[0]])  # then α is 1
    np.testing.assert_allclose(run(DynamicRule(), like_base, (1, 1, -1)), normalised(x[1]), atol=1e-9)
    alone = run(DynamicRule(), x[:3], (1, 1, -1))
    pair = x[1:3]
    np.testing.assert_allclose(run(DynamicRule(), np.concatenate([x[:3], pair]), (1, 0.5, -0.5, 0.5, -0.5)), alone)
    np.testing.assert_allclose(run(DynamicRule(), np.stack([*x[:3], x[3], x[3]]), (1, 1, -1, 1, -1)), alone)
    silent = x.copy()
    silent[3, 7] = silent[4, 9] = -np.inf
    np.testing.assert_allclose(run(DynamicRule(), silent, (1, 1, -1, 0, 0)), alone)
    assert run(DynamicRule(), silent, (1, 1, -1, 0.1, -0.1))[[7, 9]].tolist() == [-np.inf, -np.inf]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.1, 2))
def test_symmetric_dynamic_is_a_minimum(seed: int, scale: float) -> None:
    x = np.stack([normalised(row) for row in streams_of(seed, 31, scale=scale)])
    delta = x[1] - x[2]
    forward, backward = kl(x[1], x[2]), kl(x[2], x[1])

    def objective(alpha: float) -> float:
        p = moved(x[0], delta, alpha)
        return (kl(p, x[0]) - forward) ** 2 + (kl(x[0], p) - backward) ** 2

    rows = compose_rows([plan_of(DynamicRule(2.0, symmetric=True), 1, 1, -1)], [(0, 1, 2)], torch.from_numpy(x))
    alpha = float(composed(torch.from_numpy(x), rows).alpha)
    assert 0 <= alpha <= 2
    here = objective(alpha)
    assert all(here <= objective(near) + 1e-12 for near in np.clip([alpha - 1e-3, alpha + 1e-3], 0, 2))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, vocab=st.sampled_from([2, 31, 257]), epsilon=st.floats(1e-4, 2), alpha_max=st.floats(0.1, 3))
def test_budget_is_kept_and_used(seed: int, vocab: int, epsilon: float, alpha_max: float) -> None:
    x = np.stack([normalised(row) for row in streams_of(seed, vocab)])
    delta = x[1] - x[2]
    got = run(BudgetRule(epsilon, alpha_max), x, (1.0, 1.0, -1.0))
    spent = kl(got, x[0])
    assert spent <= epsilon * (1 + 1e-6)
    if kl(moved(x[0], delta, alpha_max), x[0]) <= epsilon:
        np.testing.assert_allclose(got, moved(x[0], delta, alpha_max), atol=1e-9)
    else:
        assert spent == pytest.approx(epsilon, rel=1e-6)


RULES: list[tuple[Rule, tuple[float, ...]]] = [
    (LinearRule(), (1.0, 0.5, -0.5)),
    (ReluRule(1.5), (1.0, 0.0, 0.0)),
    (MixtureRule(), (0.2, 0.5, 0.3)),
    (DiscriminatorRule(), (1.0, 0.0, 0.0)),
    (DynamicRule(), (1.0, 1.0, -1.0)),
    (DynamicRule(symmetric=True), (1.0, 1.0, -1.0)),
    (DynamicRule(), (1.0, 0.7, -0.7, -0.4, 0.4)),
    (BudgetRule(0.1), (1.0, 1.0, -1.0)),
    (RoutedRule(None), (1.0, 0.0, 0.0)),
    (RoutedRule(0.5), (1.0, 0.0, 0.0)),
    (CascadeRule("max_prob", 1.0), (1.0, 0.0, 0.0)),
    (CascadeRule("margin", 0.0, share=0.5), (1.0, 0.0, 0.0)),
    (CascadeRule("entropy", 100.0), (1.0, 0.0, 0.0)),
    (SparseRule(0.5), (0.2, 0.5, 0.3)),
    (SparseRule(0.0), (0.2, 0.5, 0.3)),
]


@pytest.mark.parametrize(("rule", "weights"), RULES)
def test_a_constant_added_to_one_member_changes_nothing(rule: Rule, weights: tuple[float, ...]) -> None:
    x = streams_of(7, 40, len(weights))
    expected = run(rule, x, weights, (0.7, 0, 0))
    for k in range(len(weights)):
        shifted = x.copy()
        shifted[k] += 11.0
        np.testing.assert_allclose(run(rule, shifted, weights, (0.7, 0, 0)), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_all_rules_gives_each_row_what_it_gets_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    logprobs = (2 * torch.randn(3 * len(RULES) + 2, 101, generator=generator, dtype=dtype)).log_softmax(-1)
    plans = [plan_of(rule, *weights) for rule, weights in RULES]
    stream_rows = [range(3 * r, 3 * r + len(plan.streams)) for r, plan in enumerate(plans)]
    state = torch.tensor([[0.4, 0.3, 2.0]], dtype=dtype).expand(len(RULES), 3)
    together = composed(logprobs, compose_rows(plans, stream_rows, logprobs), state=state)
    for r, plan in enumerate(plans):
        alone = composed(logprobs, compose_rows([plan], [stream_rows[r]], logprobs), state=state[:1])
        assert torch.equal(alone.logprobs[0], together.logprobs[r])
        assert torch.equal(alone.alpha[0].nan_to_num(-1), together.alpha[r, : alone.alpha.shape[1]].nan_to_num(-1))
        solves = isinstance(plan.rule, DynamicRule | BudgetRule | CascadeRule | SparseRule)
        assert int(together.alpha[r].isfinite().sum()) == ((len(plan.streams) - 1) // 2 if solves else 0)


@pytest.mark.parametrize(("rule", "weights"), RULES)
def test_impossible_tokens_and_broken_members(rule: Rule, weights: tuple[float, ...]) -> None:
    """−inf anywhere gives a distribution without NaN; NaN in a member that is read is not hidden."""
    x = streams_of(3, 20, len(weights))
    x[0, 3] = x[1, 4] = x[2, 5] = x[0, 6] = x[1, 6] = x[2, 6] = -np.inf
    x[3:, 6] = -np.inf
    got = run(rule, x, weights, (0.7, 0.0, 0.0))
    assert not np.isnan(got).any()
    assert not (got == np.inf).any()
    assert np.exp(got).sum() == pytest.approx(1.0)
    assert got[6] == -np.inf
    broken = streams_of(3, 20, len(weights))
    broken[0] = np.nan
    if rule not in (RoutedRule(0.5), CascadeRule("entropy", 100.0)):  # they look at stream 1 alone
        assert np.isnan(run(rule, broken, weights, (0.7, 0.0, 0.0))).all()


@pytest.mark.parametrize(("rule", "weights"), RULES)
def test_all_impossible_keeps_the_arg_max_of_the_base(rule: Rule, weights: tuple[float, ...]) -> None:
    x = streams_of(4, 6, len(weights))
    x[0, 2:] = -np.inf
    x[1, :2] = x[2, :2] = -np.inf
    got = run(rule, x, weights)
    if not np.isfinite(got).any():
        pytest.fail("no token is left")
    if isinstance(rule, LinearRule | DynamicRule | BudgetRule | DiscriminatorRule):
        assert got.argmax() == x[0].argmax()
        assert got.max() == 0.0


def test_identities() -> None:
    x = streams_of(9, 50)
    base, same = normalised(x[0]), np.stack([x[0], x[1], x[1]])
    np.testing.assert_allclose(run(ReluRule(0.0), x), base, atol=1e-12)
    np.testing.assert_allclose(run(ReluRule(2.0), np.stack([x[0], x[0]])), base, atol=1e-12)
    np.testing.assert_allclose(run(MixtureRule(), x[:1], [0.3]), base, atol=1e-12)
    np.testing.assert_allclose(run(DynamicRule(), same, (1, 1, -1)), base, atol=1e-12)
    np.testing.assert_allclose(run(BudgetRule(0.1), same, (1, 1, -1)), base, atol=1e-12)
    np.testing.assert_allclose(run(DiscriminatorRule(5.0, 1.0), same), base, atol=1e-12)


def test_a_rule_refuses_streams_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="Dynamic needs 3 streams, got 2"):
        plan_of(DynamicRule(), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"Dynamic needs pairs of streams of weights w and −w, got \[1.0, 0.5\]"):
        plan_of(DynamicRule(), 1.0, 1.0, -1.0, 0.5, -0.4)
    with pytest.raises(ValueError, match="Dynamic needs pairs"):
        plan_of(DynamicRule(), 1.0, 1.0, -1.0, 0.5)
    with pytest.raises(ValueError, match="Mixture needs weights"):
        plan_of(MixtureRule(), 1.0, -0.5)
    with pytest.raises(ValueError, match="no gate"):
        Plan((Stream("a", "m"), Stream("b", "m", inside=TokenSet(0, "ratio", 0.5))), rule=ReluRule())
    with pytest.raises(ValueError, match="needs the state"):
        reference_logprobs(plan_of(DiscriminatorRule(), 1, 0, 0), torch.zeros(3, 1, 4))


def test_a_share_of_nothing_is_not_read() -> None:
    """A mixture's stream of weight 0 may hold anything."""
    x = streams_of(2, 10)
    x[2] = math.nan
    assert np.isfinite(run(MixtureRule(), x, (0.5, 0.5, 0.0))).all()
