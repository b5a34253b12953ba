"""A whole step in the Triton kernels: masks of the request, reports of single rows, filtered rows among others, and
memory that stays where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.composers.rules import BudgetRule, DiscriminatorRule, DynamicRule, RoutedRule, Rule
from motet.kernels.decode import Decoded, DecodeRows, decode
from motet.kernels.eager import EagerKernels
from motet.kernels.layout import BitMask
from motet.kernels.logits import Logits
from motet.kernels.sampling import SampleRows
from motet.kernels.triton import launch
from motet.kernels.triton.backend import TritonKernels
from motet.kernels.triton.launch import split_vocab
from motet.kernels.triton.table import build_table
from tests.kernels import checks
from tests.kernels.cases import logits_of, packed, plans
from tests.kernels.oracle import ATOL, DEVICE, assert_alike, both, step_of, streams_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def words_of(rows: Sequence[Tensor]) -> Tensor:
    return packed(rows).to(DEVICE)


def decoded_both(logits: Logits, rows: DecodeRows) -> tuple[Decoded, Decoded]:
    return decode(TritonKernels(), logits, rows), decode(EagerKernels(), logits, rows)


@pytest.mark.parametrize("vocab", [1, 31, 33, 1057])
def test_grammars_of_every_second_row(vocab: int) -> None:
    checks.grammars(vocab)


def test_what_a_grammar_takes_from_a_row_that_is_masked_or_empty() -> None:
    """Rows 0 to 3: plausible tokens are all forbidden; the members exclude each other and the grammar allows, or
    forbids, the base's arg-max; a grammar that allows nothing. Row 4 has no grammar and no possible token."""
    vocab = 1100
    masked = Plan((Stream("base", "m"), Stream("expert", "m", 0.5)), masks=(TokenSet(0, "ratio", 0.2),))
    logits, rows = step_of([masked] * 5, vocab, trace=range(5))
    base, expert = logits.buffers[0], logits.buffers[1]
    for r in (1, 2, 4):
        base[r, 2:] = -math.inf
        expert[r, :2] = -math.inf
    best = base.argmax(-1)
    may = torch.ones(4, vocab, dtype=torch.bool)
    may[0] = base[0].cpu() < base[0].max().cpu() + math.log(0.2)
    may[2, int(best[2])] = False
    may[3] = False
    got, expected = decoded_both(logits, replace(rows, grammar=BitMask(range(4), words_of(list(may)))))
    assert_alike(got, expected)
    assert got.logprob[1:].tolist() == [0.0, -math.inf, -math.inf, 0.0]
    assert (int(got.token[1]), int(got.token[4])) == (int(best[1]), int(best[4]))
    assert got.kl is not None
    assert float(got.kl[4]) == pytest.approx(float(-base[4].log_softmax(-1).max()), abs=1e-5)


def test_plausible_sets_without_a_common_token_keep_what_they_kept() -> None:
    """The arg-max of the base, where the grammar allows it; else the composition without them."""
    apart = (TokenSet(0, "ratio", 0.9), TokenSet(1, "ratio", 0.9))
    logits, rows = step_of([Plan((Stream("base", "m"), Stream("expert", "m", 2.0)), masks=apart)] * 2, 70)
    best = logits.buffers[0].argmax(-1)
    logits.buffers[1][0, 5] = logits.buffers[1][1, 6] = 30.0
    may = torch.ones(2, 70, dtype=torch.bool)
    may[1, int(best[1])] = False
    got, expected = decoded_both(logits, replace(rows, grammar=BitMask((0, 1), words_of(list(may)))))
    assert_alike(got, expected)
    assert got.token.tolist() == [int(best[0]), 6]


def test_rows_without_a_grammar_read_no_mask() -> None:
    """Their words may lie anywhere: none are loaded."""
    logits, rows = step_of(plans(300)[:3], 300)
    grammar = BitMask((1,), words_of([torch.ones(300, dtype=torch.bool)]))
    kernels = TritonKernels()
    plain = kernels.stage(logits, rows)
    assert not plain.batch.asks.bound
    assert plain.batch.words.numel() == 1
    bound = kernels.stage(logits, replace(rows, grammar=grammar))
    assert bound.batch.info[:, 3].tolist() == [-1, 0, -1]


MIXED = SampleRows([0.9, 0.0, 0.8, 0.7, 1.2], [0, 5, 4, 0, 0], [1.0, 0.5, 1.0, 0.6, 1.0], [0.0, 0.0, 0.0, 0.0, 0.1])


def test_filtered_rows_are_drawn_alike_alone_and_in_company() -> None:
    """Open, greedy and filtered rows in one step; a forced row keeps its token, whatever its filter would keep."""
    chosen = [plans(1500)[i] for i in (0, 3, 1, 12, 2)]
    logits, rows = step_of(chosen, 1500, params=MIXED, trace=(0, 3))
    rows = replace(rows, forced=[-1, -1, -1, -1, 1499])
    together = decode(TritonKernels(), logits, rows)
    whole = EagerKernels().compose(logits, rows.plan, None, rows.state).logprobs
    logprob = whole.gather(-1, together.token[:, None])[:, 0]
    torch.testing.assert_close(together.logprob, logprob, atol=ATOL, rtol=1e-4)
    assert together.token[1] == whole[1].argmax()
    assert together.token[2] in whole[2].topk(4).indices
    assert together.token[4] == 1499
    for r in range(5):
        alone = Logits([buffer[r : r + 1] for buffer in logits.buffers])
        plan = compose_rows([chosen[r]], streams_of([chosen[r]], 1), logits.like())
        params, uniform = MIXED.select([r]), [rows.uniform[r]]
        one = DecodeRows(plan, [rows.forced[r]], params, uniform, trace=(0,) if r in rows.trace else ())
        got = decode(TritonKernels(), alone, one)
        assert got.token.item() == together.token[r].item()
        if r in rows.trace:
            assert got.base_rank is not None
            assert together.base_rank is not None
            assert got.base_rank.item() == together.base_rank[r].item()


@pytest.mark.parametrize("vocab", [7, 9000])
def test_alternatives_are_those_of_the_rows_that_ask(vocab: int) -> None:
    chosen = [plans(vocab)[i] for i in (0, 3, 12)]
    logits, rows = step_of(chosen, vocab, top=(3, 0, 9))
    got, expected = decoded_both(logits, rows)
    assert_alike(got, expected)
    for row in (0, 2):
        assert got.top_values is not None
        assert got.top_tokens is not None
        assert expected.top_values is not None
        assert expected.top_tokens is not None
        torch.testing.assert_close(got.top_values[row], expected.top_values[row], atol=ATOL, rtol=1e-4)
        assert torch.equal(got.top_tokens[row], expected.top_tokens[row])


class NoAllocation(TorchDispatchMode):
    """Refuses what gives a tensor in memory that was not there before, and what reads a value on the host."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        result = cast("object", func(*args, **(kwargs or {})))
        self.seen.append(str(func))
        several = isinstance(result, list | tuple)
        for tensor in cast("Sequence[object]", result) if several else [result]:
            assert isinstance(tensor, Tensor), f"{func} reads a value on the host"
            assert tensor.untyped_storage().data_ptr() in self.known, f"{func} allocates"
        return result


def whole_step() -> tuple[Logits, DecodeRows]:
    """All that a launch can do: rules, masks, gates, filters, alternatives, grammars and traces."""
    chosen = plans(1500)
    count = len(chosen)
    columns = zip(*([(0.8, 3, 0.9, 0.01), (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)] * count)[:count], strict=True)
    grammar = BitMask((1, 3), words_of([torch.ones(1500, dtype=torch.bool)] * 2))
    params = SampleRows(*[list(column) for column in columns])  # type: ignore[arg-type]
    return step_of(chosen, 1500, params=params, grammar=grammar, trace=(0, 2), top=[3] * count)


def test_a_launch_neither_allocates_nor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels do not pass torch's dispatcher, so they are left out: what remains is what a graph could not capture."""
    logits, rows = whole_step()
    kernels = TritonKernels()
    step = kernels.stage(logits, rows)
    kernels.launch(step)
    before = checks.addresses(step)
    names: list[str] = []

    def recorded(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        names.append(kernel.fn.__name__)
        for value in (*arguments, *options.values()):
            assert isinstance(value, Tensor | int | bool), f"{kernel.fn.__name__}: {type(value)}"

    monkeypatch.setattr(launch, "_run", recorded)
    known = {buffer.untyped_storage().data_ptr() for buffer in step.batch.space.kept.values()}
    with NoAllocation(known) as mode:
        kernels.launch(step)
    assert mode.seen, "the launch has torch operations: the mode sees them"
    assert {"scan", "finish", "relax", "alpha_pass", "discriminator_threshold", "base_rank", "top_tokens"} <= set(names)
    assert checks.addresses(kernels.stage(logits, rows)) == before
    with pytest.raises(AssertionError, match="allocates"), NoAllocation(known):
        torch.zeros(3, device=DEVICE)
    with pytest.raises(AssertionError, match="on the host"), NoAllocation(known):
        step.out.token[0].item()


def test_the_next_step_is_written_into_the_same_memory() -> None:
    checks.next_step_in_place()


def test_what_a_decode_returns_is_the_callers_own() -> None:
    logits, rows = step_of(plans(300)[:3], 300, trace=(0, 1), top=(2, 2, 2))
    kernels = TritonKernels()
    first = decode(kernels, logits, rows)
    reported = (first.token, first.logprob, first.alpha, first.kl, first.base_rank, first.top_values)
    tensors = [tensor for tensor in reported if tensor is not None]
    assert len(tensors) == 6
    held = [tensor.clone() for tensor in tensors]
    other, _ = step_of(plans(300)[:3], 300, seed=5)
    decode(kernels, other, rows)
    for tensor, copy in zip(tensors, held, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


def test_few_possible_tokens_do_not_turn_a_rank_into_a_ratio() -> None:
    """The m-th largest of fewer than m possible tokens is −inf: all that are possible stay."""
    plan = Plan((Stream("base", "m"),), masks=(TokenSet(0, "rank_or_ratio", 0.1),))
    logits = torch.full((1, 100), -math.inf)
    logits[0, [3, 50, 70]] = torch.tensor([5.0, 1.0, -9.0])
    got, oracle = both([logits], [plan], [(0,)])
    assert (got.logprobs[0] > -math.inf).nonzero()[:, 0].tolist() == [3, 50, 70]
    torch.testing.assert_close(got.logprobs.double(), oracle.logprobs, atol=ATOL, rtol=1e-4)


def test_a_rank_is_that_of_the_oracle_in_every_vocabulary() -> None:
    """value · V is rounded once, on the host: 0.07 of 100,000 tokens are 7,000."""
    for value, vocab, rank in ((0.07, 100_000, 7000), (0.29, 100, 29), (0.01, 256_000, 2560), (1e-9, 10, 1)):
        plan = Plan((Stream("base", "m"),), masks=(TokenSet(0, "rank_or_ratio", value),))
        logits = Logits([torch.zeros(1, vocab)])
        table = build_table(compose_rows([plan], [(0,)], logits.like()), logits)
        assert table.sets[0, 0].tolist() == [0, 1, 1, rank]


@pytest.mark.parametrize("rule", [DynamicRule(), BudgetRule(1e-3)])
def test_a_strength_of_zero_makes_nothing_possible(rule: Rule) -> None:
    """Expert and anti-expert are one: α is 0 under the dynamic rule, and what they ban stays banned."""
    plan = Plan((Stream("base", "m"), Stream("expert", "m", 1.0), Stream("anti", "m", -1.0)), rule=rule)
    base, expert, *_ = logits_of(1, 60, torch.float32)
    expert[0, 9] = -math.inf
    got, oracle = both([base, expert], [plan], [(0, 1, 1)])
    assert got.logprobs[0, 9] == oracle.logprobs[0, 9] == -math.inf
    torch.testing.assert_close(got.logprobs.double(), oracle.logprobs, atol=ATOL, rtol=1e-4)


@pytest.mark.parametrize("offset", [-60.0, 60.0])
def test_strengths_are_solved_where_members_lie_far_apart(offset: float) -> None:
    """A constant on one member must not reach α through rounding, also where there is little to match."""
    chosen = [plan for plan in plans(500) if isinstance(plan.rule, DynamicRule | BudgetRule)]
    buffers = logits_of(len(chosen), 500, torch.float32, scale=0.2)
    buffers[1] += offset
    got, oracle = both(buffers, chosen, streams_of(chosen, len(chosen)))
    torch.testing.assert_close(got.alpha.double(), oracle.alpha, atol=2e-3, rtol=2e-3, equal_nan=True)
    torch.testing.assert_close(got.logprobs.double(), oracle.logprobs, atol=2e-3, rtol=1e-3)


def test_rows_beyond_two_billion_elements() -> None:
    checks.rows_far_apart()


@pytest.mark.parametrize("rows", [1, 7, 64, 512, 4096])
@pytest.mark.parametrize("vocab", [1, 1024, 32_007, 151_936, 256_000])
@pytest.mark.parametrize("block", [512, 1024])
def test_splits_cover_the_vocabulary(rows: int, vocab: int, block: int) -> None:
    """Every tile once, none of the parts empty, and no more parts than one program can join."""
    split = split_vocab(rows, vocab, block)
    tiles = -(-vocab // block)
    assert split.parts * split.tiles >= tiles > (split.parts - 1) * split.tiles
    assert split.width <= 512
    assert rows * split.parts <= max(launch.PROGRAMS, rows)


def test_a_rule_that_needs_a_state_says_so() -> None:
    for plan in (p for p in plans(20) if isinstance(p.rule, DiscriminatorRule | RoutedRule)):
        logits, rows = step_of([plan], 20)
        with pytest.raises(ValueError, match="need the state of their rows"):
            decode(TritonKernels(), logits, replace(rows, state=None))
