"""The Triton implementation of `decode.Kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from motet.kernels.decode import Decoded, DecodeRows
from motet.kernels.layout import ComposeRows, SparseEdits
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed
from motet.kernels.sampling import SampleRows
from motet.kernels.triton import launch
from motet.kernels.triton.launch import Batch, Scratch
from motet.kernels.triton.table import RowTable, buffer_table, build_table, score_table, seeds


class TritonKernels:
    """Rows of unlike compositions in one launch each. Used from one thread; scratch memory is kept."""

    name = "triton"

    def __init__(self) -> None:
        self._scratch: Scratch | None = None
        self._table: tuple[ComposeRows, list[int], RowTable] | None = None

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        batch = self.batch(logits, plan, state)
        composed = torch.empty(plan.num_rows, logits.vocab, device=logits.device)
        greedy = torch.zeros(plan.num_rows, device=logits.device)
        zeros = torch.zeros(plan.num_rows, dtype=torch.int64, device=logits.device)
        alpha = _alpha(batch, launch.prepare(batch))
        _, report = launch.scan_and_finish(batch, greedy, zeros, zeros, composed)
        if rules is not None:  # a masked token is −inf already: nothing that is added lifts it
            composed.index_put_((rules.rows, rules.tokens), rules.values.to(composed.dtype), accumulate=True)
            report[:, 1] = composed.logsumexp(-1)
        launch.normalise(batch, composed, report)
        return Composed(composed, alpha)

    def sample(self, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
        scores = scores.float().contiguous()
        device = scores.device
        columns = (params.temperature, params.top_k, params.top_p, params.min_p)
        warp = torch.tensor(list(zip(*columns, strict=True)), dtype=torch.float32).to(device)
        batch = self._score_batch(scores)
        tau = self._device_scratch(device).get("tau", (scores.shape[0], 1))
        launch.thresholds(scores, warp, tau)
        forced = torch.full((scores.shape[0],), -1, dtype=torch.int64, device=device)
        token, _ = launch.scan_and_finish(batch, warp[:, 0].contiguous(), seeds(uniform, device), forced, None)
        return token

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, tokens = launch.top_tokens(logprobs.float().contiguous(), count)
        return values, tokens.long()

    def fused(self, logits: Logits, rows: DecodeRows) -> Decoded | None:
        """Two launches for weighted sums: no composed row is written. Rows that are filtered, edited or reported in
        more than their token need the row."""
        filtered = any(rows.sampling.is_filtered(r) and rows.forced[r] < 0 for r in range(len(rows.forced)))
        if filtered or rows.is_edited or rows.top or rows.keep_logprobs:
            return None
        device = logits.device
        batch = self.batch(logits, rows.plan, rows.state)
        alpha = _alpha(batch, launch.prepare(batch))
        temperature = torch.tensor(rows.sampling.temperature, dtype=torch.float32).to(device)
        forced = torch.tensor(rows.forced, dtype=torch.int64).to(device)
        token, report = launch.scan_and_finish(batch, temperature, seeds(rows.uniform, device), forced, None)
        return Decoded(token, report[:, 0], alpha)

    def _device_scratch(self, device: torch.device) -> Scratch:
        if self._scratch is None or self._scratch.device != device:
            self._scratch = Scratch(device)
        return self._scratch

    def batch(self, logits: Logits, plan: ComposeRows, state: Tensor | None) -> Batch:
        """What the launches read; the table of a plan is kept while the plan object stays the same.

        Raises:
            ValueError: logits that the kernels cannot read, or a missing state.
        """
        if self._table is None or self._table[0] is not plan or self._table[1] != logits.starts:
            self._table = (plan, logits.starts, build_table(plan, logits))
        table = self._table[2]
        if state is not None:
            table.rule[:, 4:7] = state
        elif table.has_discriminator:
            raise ValueError("rule discriminator needs the state of its rows")
        buffers, code = buffer_table(logits.buffers)
        return Batch(table, buffers, code, logits.vocab, self._device_scratch(logits.device))

    def _score_batch(self, scores: Tensor) -> Batch:
        buffers, code = buffer_table([scores])
        table = score_table(scores.shape[0], scores.device)
        return Batch(table, buffers, code, scores.shape[1], self._device_scratch(scores.device))


def _alpha(batch: Batch, solved: Tensor) -> Tensor:
    """α (R,), NaN in rows that do not solve for one."""
    if not batch.table.has_solver:
        return torch.full_like(solved, float("nan"))
    kind = batch.table.rule[:, 0]
    return torch.where((kind == 4) | (kind == 5), solved, float("nan"))
