"""The strengths of the dynamic rule against an independent brute force (NumPy, float64), on shapes made to mislead it:
several minima, flat parts, nearly equal experts, differences of hundreds. Every backend must find the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from motet.composers.plan import Plan, Stream
from motet.composers.rows import compose_rows
from motet.composers.rules import DynamicRule
from motet.kernels.eager import compose_logits
from motet.kernels.logits import Logits
from motet.kernels.reference import composed
from motet.kernels.strength import centred, match_divergence
from motet.kernels.strength import divergences as moved_by
from motet.kernels.triton.backend import TritonKernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy on −inf − −inf
Array = npt.NDArray[np.float64]
Random = np.random.Generator


def normal(x: Array) -> Array:
    return x - np.logaddexp.reduce(x)


def near_equals(r: Random, gap: float) -> Array:
    """Expert and anti-expert differ by `gap` in every logit or so; the base leans otherwise."""
    expert = r.normal(size=400) * 2
    return np.stack([r.normal(size=400) * 2, expert, expert + gap * r.normal(size=400)])


def heavy_tails(r: Random) -> Array:
    """A few tokens far from all others: the objective may have several minima."""
    return r.standard_t(r.uniform(0.8, 2.5), size=(3, 200)) * r.uniform(0.3, 6, size=(3, 1))


def stairs(r: Random) -> Array:
    """Tokens that take over from each other one by one as α grows."""
    base: Array = -np.arange(40, dtype=np.float64) * r.uniform(2, 8)
    rising: Array = np.sort(r.exponential(size=40)) * r.uniform(3, 60)
    return np.stack([base, rising, r.normal(size=40)])


def sure_base(r: Random) -> Array:
    """A base that is nearly certain: nothing moves until α is large."""
    x = r.normal(size=(3, 100)) * 2
    x[0, 0] += r.uniform(15, 30)
    return x


SHAPES: dict[str, Callable[[Random], Array]] = {
    "equal": lambda r: near_equals(r, 0.0),
    "1e-4 apart": lambda r: near_equals(r, 1e-4),
    "1e-3 apart": lambda r: near_equals(r, 1e-3),
    "1e-2 apart": lambda r: near_equals(r, 1e-2),
    "alike": lambda r: r.normal(size=(3, 300)),
    "hundreds apart": lambda r: r.normal(size=(3, 50)) * np.array([[1.0], [300.0], [200.0]]),
    "heavy tails": heavy_tails,
    "stairs": stairs,
    "sure base": sure_base,
}


def divergences(x: Array, grid: Array) -> tuple[Array, Array, float, float]:
    """KL(p_α‖p_0), KL(p_0‖p_α) on a grid of α, KL(p_1‖p_2) and KL(p_2‖p_1), by their definitions."""
    base, expert, anti = (normal(row) for row in x)
    forward, backward = np.empty(len(grid)), np.empty(len(grid))
    for i, alpha in enumerate(grid):
        moved = normal(base + alpha * (expert - anti))
        forward[i] = (np.exp(moved) * (moved - base)).sum()
        backward[i] = (np.exp(base) * (base - moved)).sum()
    gap = expert - anti
    return forward, backward, float((np.exp(expert) * gap).sum()), -float((np.exp(anti) * gap).sum())


def objective(x: Array, grid: Array) -> Array:
    forward, backward, f, b = divergences(x, grid)
    return (forward - f) ** 2 + (backward - b) ** 2


def by_oracle(logits: torch.Tensor, plan: Plan) -> float:
    logprobs = logits.double().log_softmax(-1)
    return float(composed(logprobs, compose_rows([plan], [(0, 1, 2)], logprobs)).alpha)


def by_eager(logits: torch.Tensor, plan: Plan) -> float:
    return float(compose_logits(Logits([logits]), compose_rows([plan], [(0, 1, 2)], logits)).alpha)


def by_triton(logits: torch.Tensor, plan: Plan) -> float:
    rows = compose_rows([plan], [(0, 1, 2)], logits)
    return float(TritonKernels().compose(Logits([logits]), rows, None, None).alpha)


BACKENDS = {"oracle": by_oracle, "eager": by_eager, "triton": by_triton}


def plan_of(symmetric: bool) -> Plan:
    streams = (Stream("base", "m"), Stream("expert", "m"), Stream("antiexpert", "m", -1.0))
    return Plan(streams, rule=DynamicRule(2.0, symmetric=symmetric))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_symmetric_form_finds_the_least_of_its_objective(shape: str, backend: str) -> None:
    grid = np.linspace(0, 2, 1501)
    for seed in range(4 if backend == "triton" else 12):
        x = SHAPES[shape](np.random.default_rng(seed)).astype(np.float32)
        alpha = BACKENDS[backend](torch.from_numpy(x), plan_of(symmetric=True))
        wide = x.astype(np.float64)
        values = objective(wide, grid)
        here = objective(wide, np.array([alpha]))[0]
        near = objective(wide, np.clip([alpha - 2e-3, alpha + 2e-3], 0, 2)).min()
        _, _, f, b = divergences(wide, np.array([0.0]))
        # what float32 sums leave of the divergences themselves, where they are large
        noise = 1e-3 * min(values.min(), near) + (2e-6 * (1 + f + b)) ** 2 + 1e-4 * (f * f + b * b) * 1e-4
        assert here <= min(values.min(), near) + noise, f"seed {seed}: α {alpha}, best {grid[values.argmin()]}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gap", [1e-4, 3e-4, 1e-3, 5e-3])
def test_small_divergences_are_matched_to_a_thousandth(gap: float, backend: str) -> None:
    """Both divergences lie below 1e-4, where float32 leaves nothing of 1 − lse."""
    for seed in range(4):
        x = near_equals(np.random.default_rng(seed), gap).astype(np.float32)
        wide = x.astype(np.float64)
        _, _, target, backward = divergences(wide, np.array([0.0]))
        assert max(target, backward) < 1e-4
        low, high = 0.0, 2.0
        for _ in range(60):
            middle = (low + high) / 2
            reaches = divergences(wide, np.array([middle]))[0][0] >= target
            low, high = (low, middle) if reaches else (middle, high)
        alpha = BACKENDS[backend](torch.from_numpy(x), plan_of(symmetric=False))
        assert abs(alpha - high) < 1e-3, f"seed {seed}: {alpha} instead of {high}"


def test_some_of_these_objectives_have_several_minima() -> None:
    grid = np.linspace(0, 2, 1501)
    several = 0
    for seed in range(12):
        values = objective(heavy_tails(np.random.default_rng(seed)).astype(np.float32).astype(np.float64), grid)
        several += int(((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])).sum() > 1)
    assert several >= 2


def test_pairs_are_solved_each_for_itself() -> None:
    """Two unlike pairs in one row: each gets the strength that it has alone."""
    r = np.random.default_rng(3)
    x = torch.from_numpy(np.concatenate([r.normal(size=(3, 90)), heavy_tails(r)[1:, :90]]).astype(np.float32))
    streams = tuple(Stream(f"s{k}", "m", w) for k, w in enumerate((1.0, 0.5, -0.5, 0.7, -0.7)))
    rows = compose_rows([Plan(streams, rule=DynamicRule(2.0, symmetric=True))], [range(5)], x)
    alone = [by_oracle(x[[0, k, k + 1]], plan_of(symmetric=True)) for k in (1, 3)]
    for alpha in (
        compose_logits(Logits([x]), rows).alpha,
        TritonKernels().compose(Logits([x]), rows, None, None).alpha,
    ):
        np.testing.assert_allclose(alpha[0].numpy(), alone, atol=1e-3)


def test_a_strength_is_never_below_zero_and_moves_no_further_than_asked() -> None:
    """Two rare tokens on opposite sides: KL rises late and then levels off, and a step from there leads far away."""
    base = torch.tensor([[1 - 2e-6, 1e-6, 1e-6]], dtype=torch.float64).log()
    sure = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cases = [(base, torch.tensor([[0.0, 40.0, -40.0]], dtype=torch.float64), 2.0, 0.01)]
    cases += [((6 * sure).log_softmax(-1), 11 * sure.roll(7, 0).roll(3, 1), 1.0, cap) for cap in (0.01, 0.5, 3.0)]
    for start, delta, most, cap in cases:
        shift = centred(start, delta)
        ends = torch.full((len(start),), most, dtype=torch.float64), torch.full((len(start),), cap, dtype=torch.float64)
        alpha = match_divergence(start, shift, *ends)
        assert bool(((alpha >= 0) & (alpha <= most)).all())
        moved = moved_by(start, shift, alpha).forward
        assert bool((moved <= cap * (1 + 1e-6)).all())
        assert bool(((alpha == most) | ((moved - cap).abs() <= 1e-6 * cap)).all())
