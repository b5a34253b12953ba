"""What holds of the Triton kernels, as calls that raise where it does not: tests make them in the interpreter,
`benchmarks.gpu` on a GPU, where there may be no pytest. Those that compare numbers return the largest error in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.kernels.decode import decode
from motet.kernels.layout import BitMask
from motet.kernels.logits import Logits
from motet.kernels.reference import warp
from motet.kernels.sampling import SampleRows
from motet.kernels.triton import launch
from motet.kernels.triton.backend import DeviceStep, TritonKernels
from motet.kernels.triton.table import buffer_table
from motet.kernels.triton.workspace import Workspace, staged_scores
from tests.kernels.cases import logits_of, packed, plans
from tests.kernels.frequencies import FALSE_ALARM, chi_square_p, draws
from tests.kernels.oracle import (
    DEVICE,
    Oracle,
    assert_alike,
    assert_close,
    both,
    exactly,
    has_nucleus,
    step_of,
    streams_of,
)

ROWS = len(plans(100))


def all_rules(vocab: int, dtype: torch.dtype, *, nuclei: bool, step: int = 1) -> float:
    """Every `step`-th plan in one launch. `nuclei`: not where tokens tie, as the kernels keep what ties with the edge
    of a nucleus."""
    chosen = [plan for plan in plans(vocab)[::step] if nuclei or not has_nucleus(plan)]
    rows = len(chosen)
    return assert_close(*both(logits_of(rows, vocab, dtype), chosen, streams_of(chosen, rows)))


def unlike_members() -> float:
    """Three dtypes, and rows that are not next to one another."""
    chosen = [plan for plan in plans(100) if not has_nucleus(plan)]
    rows = len(chosen)
    a, b, c, d, e = logits_of(rows, 130, torch.float32)
    buffers = [a[:, 7:107], b[:, :100].bfloat16(), c[:, 30:].half(), d[:, :100], e[:, :100]]
    assert buffer_table(buffers)[1] == 3
    return assert_close(*both(buffers, chosen, streams_of(chosen, rows)))


def impossible_tokens() -> float:
    """−inf in every member; one row whose members exclude each other keeps its base's arg-max."""
    chosen = plans(300)
    buffers = logits_of(ROWS, 300, torch.float32)
    buffers[0][:, 3] = buffers[1][:, 4] = buffers[2][:, 5] = -math.inf
    buffers[0][1, 2:] = -math.inf
    buffers[1][1, :2] = buffers[2][1, :2] = -math.inf
    got, oracle = both(buffers, chosen, streams_of(chosen, ROWS))
    assert got.logprobs[1].argmax() == buffers[0][1].argmax()
    return assert_close(got, oracle)


def broken_member() -> None:
    """NaN stays in its own rows."""
    chosen = plans(50)[:4]
    buffers = logits_of(4, 50, torch.float32)
    buffers[0][3] = math.nan
    got, _ = both(buffers, chosen, streams_of(chosen, 4))
    assert got.logprobs[3].isnan().all()
    assert got.logprobs[:3].isfinite().all()


def rows_far_apart() -> float:
    """Row 1 starts 2³¹ elements behind row 0: its address needs 64 bits. The memory between them is never touched."""
    stride = 1 << 31
    storage = torch.empty(stride + 64, dtype=torch.bfloat16, device=DEVICE)
    far = storage.as_strided((2, 50), (stride, 1))
    far.copy_(logits_of(2, 50, torch.bfloat16)[0])
    chosen = [Plan((Stream("base", "m"),), masks=(TokenSet(0, "ratio", 0.1),))] * 2
    got = both([far], chosen, [(0,), (1,)])
    return assert_close(*got)


def greedy_and_forced(vocab: int, forced: Sequence[int], step: int = 1) -> float:
    """Tokens and log-probs of every `step`-th plan; the forced tokens are taken in turn."""
    chosen = plans(vocab)[::step]
    logits, rows = step_of(chosen, vocab)
    rows = replace(rows, forced=list(islice(cycle(forced), len(chosen))))
    return assert_alike(decode(TritonKernels(), logits, rows), decode(Oracle(), *exactly(chosen, logits, rows)))


def traces(vocab: int) -> float:
    """Tokens, KL and rank of every second row; the others are not looked at."""
    chosen = plans(vocab)
    logits, rows = step_of(chosen, vocab)
    forced = [(97 * r) % vocab if r % 4 else -1 for r in range(ROWS)]
    rows = replace(rows, forced=forced, trace=range(0, ROWS, 2))
    got = decode(TritonKernels(), logits, rows)
    assert got.kl is not None
    assert int(got.kl.isnan().sum()) == ROWS // 2
    return assert_alike(got, decode(Oracle(), *exactly(chosen, logits, rows)))


def grammars(vocab: int, step: int = 1) -> float:
    """Every second row has one, of every `step`-th plan; where plausibility leaves nothing of it, it gives way."""
    chosen = plans(vocab)[::step]
    bound = range(0, len(chosen), 2)
    generator = torch.Generator().manual_seed(vocab)
    may = [torch.rand(vocab, generator=generator) < 0.1 for _ in bound]
    for row in may:
        row[-1] = True
    grammar = BitMask(bound, packed(may).to(DEVICE))
    logits, rows = step_of(chosen, vocab, grammar=grammar, trace=range(len(chosen)))
    return assert_alike(decode(TritonKernels(), logits, rows), decode(Oracle(), *exactly(chosen, logits, rows)))


def alternatives(vocab: int, count: int) -> None:
    logprobs = torch.randn(3, vocab, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    values, tokens = TritonKernels().top(logprobs.to(DEVICE), count)
    expected = logprobs.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values.cpu(), expected.values[:, :count])
    assert torch.equal(tokens.cpu(), expected.indices[:, :count]), "the lowest token of a tie comes first"


def splits(vocab: int, step: int) -> None:
    """Into how many programs a vocabulary is split changes no token."""
    chosen = plans(vocab)[::step]
    count, before = len(chosen), launch.PROGRAMS
    params = SampleRows([0.9] * count, [0] * count, [1.0] * count, [0.0] * count)
    logits, rows = step_of(chosen, vocab, 3, params)
    tokens: list[torch.Tensor] = []
    try:
        for launch.PROGRAMS in (1, 64, 512):
            tokens.append(decode(TritonKernels(), logits, rows).token)
    finally:
        launch.PROGRAMS = before
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def company(vocab: int) -> None:
    """A row is decoded alike alone and among others."""
    chosen = plans(vocab)[:4]
    params = SampleRows([0.8] * 4, [0] * 4, [1.0] * 4, [0.0] * 4)
    logits, rows = step_of(chosen, vocab, 9, params)
    together = decode(TritonKernels(), logits, rows).token
    for r in range(4):
        alone = Logits([buffer[r : r + 1] for buffer in logits.buffers])
        plan = compose_rows([chosen[r]], streams_of([chosen[r]], 1), logits.like())
        assert rows.state is not None
        own = replace(rows, plan=plan, forced=[-1], sampling=params.select([r]), uniform=[rows.uniform[r]])
        own = replace(own, state=rows.state[r : r + 1])
        assert decode(TritonKernels(), alone, own).token.item() == together[r].item()


@dataclass(frozen=True, slots=True)
class Warp:
    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def rows(self, count: int) -> SampleRows:
        columns = ([value] * count for value in (self.temperature, self.top_k, self.top_p, self.min_p))
        return SampleRows(*columns)  # type: ignore[arg-type]

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """The oracle's, (1, V), of scores (1, V)."""
        temperature, top_p, min_p = (torch.tensor([v]).double() for v in (self.temperature, self.top_p, self.min_p))
        return warp(scores.double(), temperature, torch.tensor([self.top_k]), top_p, min_p)


def frequencies(case: Warp, vocab: int, rows: int) -> None:
    """Chi-square at a false-alarm rate of 1e-6, over 20 possible tokens."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.full((1, vocab), -math.inf)
    places = torch.randperm(vocab, generator=generator)[:20]
    scores[0, places] = 1.5 * torch.randn(20, generator=generator)
    tokens = TritonKernels().sample(scores.to(DEVICE).expand(rows, -1), case.rows(rows), draws(rows, 4)).cpu()
    probs = case.probabilities(scores)[0].numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    assert counts[probs == 0].sum() == 0, "a filtered or impossible token was drawn"
    assert chi_square_p(counts, probs) > FALSE_ALARM


def thresholds(case: Warp, vocab: int, seed: int) -> None:
    """What top-k, top-p and min-p keep is what the oracle keeps; rounding decides about one token at most."""
    scores = 2 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))
    batch = staged_scores(Workspace(DEVICE), scores.to(DEVICE), case.rows(1), [1.0])
    tau = launch.thresholds(batch, scores.to(DEVICE))
    temperature, top_k, top_p, min_p = batch.params.cpu().double().unbind(-1)  # as rounded to float32
    kept = warp(scores.double(), temperature, top_k.long(), top_p, min_p) > 0
    assert int(((scores >= tau.cpu()) != kept).sum()) <= 1


def addresses(step: DeviceStep) -> dict[str, int]:
    """Where all that a captured graph would read and write lies."""
    return {name: buffer.data_ptr() for name, buffer in step.batch.space.kept.items()}


def next_step_in_place() -> None:
    """As a replayed graph needs: the launches of the first step, run again, compute the second."""
    first, rows = step_of(plans(300)[:4], 300)
    warm = SampleRows([0.9] * 4, [0] * 4, [1.0] * 4, [0.0] * 4)
    second, other = step_of(plans(300)[:4], 300, seed=1, params=warm)
    kernels = TritonKernels()
    step = kernels.stage(first, rows)
    kernels.launch(step)
    again = kernels.stage(second, replace(other, plan=rows.plan))
    assert addresses(again) == addresses(step)
    kernels.launch(step)
    expected = decode(TritonKernels(), second, other)
    assert torch.equal(step.out.token, expected.token)
    torch.testing.assert_close(step.out.report[:, 0], expected.logprob)
