"""Compositions and logits that every kernel test draws from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rules import (
    BudgetRule,
    CascadeRule,
    DiscriminatorRule,
    DivergenceRule,
    DynamicRule,
    LinearRule,
    MixtureRule,
    ReluRule,
    RoutedRule,
    Rule,
    SparseRule,
)

NUM_STREAMS = 5
STATE = (0.4, 0.3, 2.0)  # as a gate's share, and as sums of log-probs with a count


def _plan(rule: Rule, *weights: float, masks: tuple[TokenSet, ...] = ()) -> Plan:
    return Plan(tuple(Stream(f"s{k}", "m", w) for k, w in enumerate(weights)), masks, rule=rule)


def _tempered(rule: Rule, *weights: float) -> Plan:
    streams = (Stream(f"s{k}", "m", w, temperature=1.3 - 0.4 * k) for k, w in enumerate(weights))
    return Plan(tuple(streams), rule=rule)


def plans(vocab: int) -> list[Plan]:
    """One plan of every rule and kind of set, with one to five streams."""
    gate = TokenSet(1, "nucleus", 0.7)
    gated = (
        Stream("base", "m"),
        Stream("tuned", "m", 0.8, inside=gate),
        Stream("reference", "m", -0.8, temperature=0.7, inside=gate),
    )
    return [
        _plan(LinearRule(), 1.0, 1.0, -1.0),
        _plan(LinearRule(), 1.0, 0.5, 0.5),
        _plan(LinearRule(), 0.7),
        _plan(LinearRule(), 1.5, -0.5, masks=(TokenSet(0, "ratio", 0.1),)),
        _plan(LinearRule(), 1.0, -0.8, masks=(TokenSet(0, "rank_or_ratio", 0.02),)),
        _plan(LinearRule(), 1.0, 1.0, -1.0, masks=(TokenSet(0, "nucleus", 0.9), TokenSet(1, "ratio", 1e-4))),
        Plan(gated),
        _plan(ReluRule(1.5), 1.0, 0.0),
        _plan(MixtureRule(), 0.2, 0.5, 0.3),
        _plan(DiscriminatorRule(), 1.0, 0.0, 0.0),
        _plan(DiscriminatorRule(omega=3.0, mass=1.0), 1.0, 0.0, 0.0),
        _plan(DynamicRule(), 1.0, 1.0, -1.0),
        _plan(DynamicRule(symmetric=True), 1.0, 1.0, -1.0),
        _plan(DynamicRule(), 1.0, 0.6, -0.6, -0.3, 0.3),
        _plan(DynamicRule(), 1.0, 0.0, 0.0, 1.0, -1.0),
        _plan(BudgetRule(0.2, alpha_max=1.5), 1.0, 1.0, -1.0, masks=(TokenSet(0, "ratio", 1e-3),)),
        _plan(BudgetRule(0.2), 1.5, 0.5, -1.0),
        _tempered(BudgetRule(0.2), 0.5, 1.0, -1.0),
        _tempered(DynamicRule(), 1.0, 1.0, -1.0),
        _tempered(ReluRule(1.5), 1.0, 0.0),
        _tempered(MixtureRule(), 0.2, 0.5, 0.3),
        _tempered(DiscriminatorRule(omega=3.0), 1.0, 0.0, 0.0),
        _plan(DivergenceRule(5), 1.0, 0.0, 0.0),
        _plan(DivergenceRule(vocab), 1.0, 0.0, 0.0, masks=(TokenSet(0, "ratio", 1e-3),)),
        _tempered(DivergenceRule(1), 1.0, 0.0, 0.0),
        _plan(CascadeRule("max_prob", 0.2), 1.0, 0.0),
        _plan(CascadeRule("margin", 0.1), 1.0, 0.0, masks=(TokenSet(0, "ratio", 1e-3),)),
        _plan(CascadeRule("entropy", 3.0, share=0.7), 1.0, 0.0),
        _tempered(CascadeRule("margin", 0.0), 1.0, 0.0),
        _tempered(CascadeRule("entropy", 100.0), 1.0, 0.0),
        _plan(CascadeRule("max_prob", 1.0), 1.0, 0.0),
        _plan(SparseRule(), 0.2, 0.5, 0.3),
        _plan(SparseRule(0.0), 1.0, 1.0, 0.0, 0.4),
        _tempered(SparseRule(1.0), 0.4, 0.6),
        _plan(SparseRule(1.0), 0.7, masks=(TokenSet(0, "ratio", 1e-3),)),
        _plan(RoutedRule(None), 1.0, 0.0),
        _plan(RoutedRule(0.5), 1.0, 0.0),
    ]


def packed(rows: Sequence[Tensor]) -> Tensor:
    """(n, ⌈V/32⌉) int32 words of n rows of allowed tokens (V,)."""
    words: list[list[int]] = []
    for row in rows:
        bits = "".join("1" if may else "0" for may in cast("list[bool]", row.tolist()))
        chunks = [bits[start : start + 32] for start in range(0, len(bits), 32)]
        words.append([int(chunk[::-1], 2) for chunk in chunks])
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def logits_of(rows: int, vocab: int, dtype: torch.dtype, seed: int = 0, scale: float = 2.0) -> list[Tensor]:
    """One buffer (rows, V) per stream; each a little shifted, as members' logits are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64) + 3.0 * k).to(dtype)
        for k in range(NUM_STREAMS)
    ]
