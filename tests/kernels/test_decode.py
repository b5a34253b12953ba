"""The one decode: what the request masks, and what is reported of single rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.kernels.decode import NO_END, DecodeRows, Kernels, decode
from motet.kernels.eager import EagerKernels
from motet.kernels.layout import BitMask, edits
from motet.kernels.logits import Logits
from motet.kernels.reference import kl_divergence
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.backend import TritonKernels
from tests.kernels.cases import logits_of, packed

KERNELS: tuple[Kernels, ...] = (EagerKernels(), TritonKernels())

PLANS = [
    Plan((Stream("base", "m"), Stream("expert", "m", 0.8))),
    Plan((Stream("base", "m"), Stream("expert", "m", -0.5)), masks=(TokenSet(0, "ratio", 0.3),)),
    Plan((Stream("base", "m"),)),
]


def rows_of(logits: Logits, forced: Sequence[int] = (-1, -1, -1), **fields: Any) -> DecodeRows:
    plan = compose_rows(PLANS, [(r, 3 + r)[: len(p.streams)] for r, p in enumerate(PLANS)], logits.like())
    greedy = SampleRows([0.0] * 3, [0] * 3, [1.0] * 3, [0.0] * 3)
    return DecodeRows(plan, forced, greedy, [1.0] * 3, **fields)


def logits(vocab: int = 97) -> Logits:
    return Logits(logits_of(3, vocab, torch.float64)[:2])


def composed(step: Logits) -> Tensor:
    return EagerKernels().compose(step, rows_of(step).plan, None, None).logprobs


def test_a_grammar_rules_its_own_rows_only() -> None:
    step = logits()
    may = torch.rand(97, generator=torch.Generator().manual_seed(1)) < 0.3
    plain = composed(step)
    wanted = plain[0].masked_fill(~may, -math.inf).log_softmax(-1)
    out = decode(EagerKernels(), step, rows_of(step, grammar=BitMask((0,), packed([may]))))
    assert out.token[0] == wanted.argmax()
    assert float(out.logprob[0]) == pytest.approx(float(wanted.max()))
    assert torch.equal(out.token[1:], plain[1:].argmax(-1))


def test_plausibility_gives_way_to_a_grammar() -> None:
    """What the composition's mask leaves nothing of is composed without it, as for allowed tokens."""
    step = logits()
    plain = composed(step)
    may = plain[1] == -math.inf
    assert may.any()
    choices: list[dict[str, Any]] = [{"grammar": BitMask((1,), packed([may]))}, {"allowed": [(1, may.nonzero()[:, 0])]}]
    for masks in choices:
        out = decode(EagerKernels(), step, rows_of(step, **masks))
        bare = (step.logprobs(slice(1, 2)) - 0.5 * step.logprobs(slice(4, 5)))[0]
        expected = bare.masked_fill(~may, -math.inf).log_softmax(-1)
        assert out.token[1] == expected.argmax()
        assert float(out.logprob[1]) == pytest.approx(float(expected.max()))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # the interpreter's numpy on −inf − −inf
@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_where_masks_hold_an_answer_of_which_nothing_is_left_ends(kernels: Kernels) -> None:
    """And no other: a row whose list leaves something goes on, one whose masks do not hold is composed without them."""
    end = 3
    step = Logits(logits_of(3, 97, torch.float32)[:2])
    implausible = composed(step)[1] == -math.inf
    likeliest = composed(step)[1].argmax()
    choices: list[dict[str, Any]] = [
        {"grammar": BitMask((1,), packed([implausible]))},
        {"allowed": [(1, implausible.nonzero()[:, 0])]},
    ]
    for masks in choices:
        held = decode(kernels, step, rows_of(step, held={1: end}, **masks))
        assert (int(held.token[1]), float(held.logprob[1])) == (end, 0.0)
        lifted = decode(kernels, step, rows_of(step, held={0: end}, **masks))
        assert implausible[lifted.token[1]]
        assert torch.equal(held.token[[0, 2]], lifted.token[[0, 2]])
    endless = decode(EagerKernels(), step, rows_of(step, held={1: NO_END}, allowed=choices[1]["allowed"]))
    assert float(endless.logprob[1]) == -math.inf
    some = implausible.clone()
    some[likeliest] = True
    out = decode(kernels, step, rows_of(step, held={1: end}, allowed=[(1, some.nonzero()[:, 0])]))
    assert out.token[1] == likeliest


def test_masks_of_the_request_intersect() -> None:
    step = logits()
    may = torch.zeros(97, dtype=torch.bool)
    may[[5, 6, 7]] = True
    fields: dict[str, Any] = {
        "grammar": BitMask((0,), packed([may])),
        "allowed": [(0, torch.tensor([6, 7, 8]))],
        "banned": edits([(0, 7, 0.0)], step.like()),
    }
    out = decode(EagerKernels(), step, rows_of(step, **fields))
    assert (int(out.token[0]), float(out.logprob[0])) == (6, 0.0)


def test_a_grammar_that_allows_nothing_is_told() -> None:
    step = logits()
    out = decode(EagerKernels(), step, rows_of(step, grammar=BitMask((2,), packed([torch.zeros(97)]))))
    assert out.logprob[2] == -math.inf


def test_a_mask_of_another_vocabulary_is_refused() -> None:
    step = logits()
    with pytest.raises(ValueError, match=r"mask of 97 tokens for 1 rows is int32 \(1, 4\), got torch.int32 \(1, 3\)"):
        decode(EagerKernels(), step, rows_of(step, grammar=BitMask((0,), torch.zeros(1, 3, dtype=torch.int32))))


def test_a_trace_is_of_the_rows_that_ask() -> None:
    step = logits()
    out = decode(EagerKernels(), step, rows_of(step, (-1, 11, 12), trace=(1, 2)))
    assert out.kl is not None
    assert out.base_rank is not None
    base = step.logprobs(slice(0, 3))
    torch.testing.assert_close(out.kl[1:], kl_divergence(composed(step), base)[1:])
    assert out.kl[0].isnan()
    assert float(out.kl[2]) == pytest.approx(0.0, abs=1e-12)
    assert out.base_rank.tolist() == [-1, int((base[1] > base[1, 11]).sum()), int((base[2] > base[2, 12]).sum())]


class Counting(EagerKernels):
    """Counts the rows whose alternatives are looked for."""

    looked = 0

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        self.looked += logprobs.shape[0]
        return super().top(logprobs, count)


def test_rows_pay_for_their_own_reports_only(monkeypatch: pytest.MonkeyPatch) -> None:
    step, kernels = logits(), Counting()
    out = decode(kernels, step, rows_of(step, top=(0, 3, 0)))
    assert out.top_values is not None
    assert out.top_tokens is not None
    assert kernels.looked == 1
    expected = composed(step)[1].topk(3)
    assert torch.equal(out.top_values[1], expected.values)
    assert torch.equal(out.top_tokens[1], expected.indices)
    assert out.kl is None
    whole = decode(Counting(), step, rows_of(step, top=(1, 3, 200)))
    assert whole.top_values is not None
    assert whole.top_values.shape == (3, 97), "no more than there are"

    def normalised(*_: object) -> Tensor:
        raise AssertionError("a stream was normalised that no row asked for")

    monkeypatch.setattr(Logits, "logprobs", normalised)
    decode(kernels, step, rows_of(step))
