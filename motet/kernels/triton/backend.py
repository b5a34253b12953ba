"""The Triton implementation of `decode.Kernels`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from motet.kernels.cores import STATE_WIDTH
from motet.kernels.decode import Decoded, DecodeRows
from motet.kernels.layout import ComposeRows, SparseEdits
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed
from motet.kernels.sampling import SampleRows
from motet.kernels.triton import launch
from motet.kernels.triton.columns import KL, LOG_SUM, LOGPROB, SOLVES, STATE, as_int
from motet.kernels.triton.launch import Outputs
from motet.kernels.triton.table import RowTable, build_table
from motet.kernels.triton.workspace import Asks, Batch, Workspace, scores_of, staged, staged_scores


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step whose figures lie on the device: `TritonKernels.launch` may run it, also inside of a captured graph.

    The same launches serve the next step if `TritonKernels.stage` returns a step of the same shapes and flags: it
    writes into the same memory.
    """

    batch: Batch
    scores: Batch | None  # where rows are filtered or report alternatives
    out: Outputs


class TritonKernels:
    """Rows of unlike compositions in one launch each. Used from one thread; memory is kept from step to step."""

    name = "triton"

    def __init__(self) -> None:
        self._space: Workspace | None = None
        self._table: tuple[ComposeRows, tuple[int, ...], RowTable] | None = None

    def fused(self, logits: Logits, rows: DecodeRows) -> Decoded | None:
        """Two launches for weighted sums: no composed row is written but those that are filtered or report
        alternatives. None where single tokens are edited: their places differ from step to step; and where a row that
        has lost everything must not be composed without its masks, as these kernels would; and where tokens are
        proposed."""
        if rows.is_edited or rows.may_end or rows.proposals:
            return None
        step = self.stage(logits, rows)
        self.launch(step)
        return _collected(step)

    def stage(self, logits: Logits, rows: DecodeRows) -> DeviceStep:
        """Brings a step's figures to the device.

        Raises:
            ValueError: logits that the kernels cannot read, or a missing state.
        """
        space = self._workspace(logits.device)
        batch = staged(space, self._table_of(logits, rows.plan, rows.state), logits.buffers, rows)
        keeps = batch.asks.filtered or batch.asks.top > 0
        return DeviceStep(batch, scores_of(batch) if keeps else None, launch.outputs_of(batch))

    def launch(self, step: DeviceStep) -> None:
        """Nothing but launches: no allocation once a step of this size has run, and no wait for the device."""
        launch.run(step.batch, step.scores, step.out)

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        greedy = _greedy(plan.num_rows)
        rows = DecodeRows(plan, [0] * plan.num_rows, greedy, [1.0] * plan.num_rows, state)
        step = self.stage(logits, rows)
        composed = torch.empty(plan.num_rows, logits.vocab, device=logits.device)
        solved = launch.prepare(step.batch)
        launch.scan(step.batch, composed)
        launch.finish(step.batch, step.out)
        if rules is not None:  # a masked token is −inf already: nothing that is added lifts it
            composed.index_put_((rules.rows, rules.tokens), rules.values.to(composed.dtype), accumulate=True)
            step.out.report[:, as_int(LOG_SUM)] = composed.logsumexp(-1)
        launch.normalise(step.batch, composed, step.out.report)
        return Composed(composed, _alpha(step.batch, solved))

    def sample(self, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
        scores = scores.float().contiguous()
        batch = staged_scores(self._workspace(scores.device), scores, params, uniform)
        out = launch.outputs_of(batch)
        launch.draw_again(batch, scores, out)
        return out.token.clone()

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values = logprobs.float().contiguous()
        rows = values.shape[0]
        batch = staged_scores(self._workspace(values.device), values, _greedy(rows), [1.0] * rows)
        batch = replace(batch, asks=Asks(top=count))
        out = launch.outputs_of(batch)
        launch.top_tokens(batch, values, out)
        return _clones(out)

    def _workspace(self, device: torch.device) -> Workspace:
        if self._space is None or self._space.device != device:
            self._space, self._table = Workspace(device), None
        return self._space

    def _table_of(self, logits: Logits, plan: ComposeRows, state: Tensor | None) -> RowTable:
        """The table of a plan, kept while the plan object stays the same."""
        places = (logits.vocab, *logits.starts)
        if self._table is None or self._table[0] is not plan or self._table[1] != places:
            table = self._workspace(logits.device).put_table("plan", build_table(plan, logits))
            self._table = (plan, places, table)
        table = self._table[2]
        if state is not None:
            table.rule[:, as_int(STATE) : as_int(STATE) + STATE_WIDTH] = state
        elif table.has_state:
            raise ValueError("the rules discriminator and routed need the state of their rows")
        return table


def _greedy(rows: int) -> SampleRows:
    return SampleRows([0.0] * rows, [0] * rows, [1.0] * rows, [0.0] * rows)


def _collected(step: DeviceStep) -> Decoded:
    """The outputs as the caller's own: the next step writes over those of this one."""
    batch, out = step.batch, step.out
    alpha = _alpha(batch, batch.inputs()[-1])
    values, tokens = _clones(out) if batch.asks.top else (None, None)
    traced = batch.asks.traced
    kl, rank = (out.report[:, as_int(KL)].clone(), out.rank.clone()) if traced else (None, None)
    return Decoded(out.token.clone(), out.report[:, as_int(LOGPROB)].clone(), alpha, values, tokens, kl, rank)


def _clones(out: Outputs) -> tuple[Tensor, Tensor]:
    assert out.values is not None
    assert out.ids is not None
    return out.values.clone(), out.ids.long()


def _alpha(batch: Batch, solved: Tensor) -> Tensor:
    """α (R, PAIRS), NaN where a row does not solve for one."""
    pair = torch.arange(batch.table.pairs, device=solved.device)
    return torch.where(pair < batch.table.rule[:, as_int(SOLVES), None], solved, math.nan)
