"""The table's carrier on vLLM's V1 runner: a logits processor, told before each forward who sits where.

It also draws: vLLM's sampler is asked for the arg-max, and this makes the drawn token the arg-max, after the composed
log-probs were noted. Drawing is thus the project's own, in the project's order, with the project's seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from motet.kernels.decode import Kernels
from motet.kernels.dispatch import choose_kernels
from motet.kernels.reference import penalise
from motet.kernels.sampling import SampleRows
from motet.server.engines.edits import penalties
from motet.server.engines.vllm.config import known_members
from motet.server.engines.vllm.internals import touch
from motet.server.engines.vllm.requests import row_of
from motet.server.engines.vllm.table import Drawn, Row, table_of

log = logging.getLogger(__name__)
CHOSEN = 1e9  # above every log-prob with its bias

_LogitsProcessor: Any = touch("LogitsProcessor")
_SWAP: Any = touch("MoveDirectionality").SWAP


class Carrier(_LogitsProcessor):
    """Named in vLLM's `logits_processors`."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, in the front end: an exception in `update_state` would end the engine."""
        row_of(sampling_params.extra_args, (), [], known_members())

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._table = table_of(vllm_config.compilation_config.static_forward_context)
        self._kernels = choose_kernels(torch.device(device))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        rows = self._table.rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            rows.pop(index, None)
            row = row_of(params.extra_args, prompt or (), output, list(self._table.members), self._table.ends)
            if row is not None:
                rows[index] = row
        for source, target, direction in batch_update.moved:
            moved, displaced = rows.pop(source, None), rows.pop(target, None)
            if moved is not None:
                rows[target] = moved
            if direction == _SWAP and displaced is not None:
                rows[source] = displaced

    def apply(self, logits: Tensor) -> Tensor:
        """Makes each row's drawn token its arg-max."""
        drawing = [(i, row) for i, row in sorted(self._table.rows.items()) if row.spec.draw and i < logits.shape[0]]
        if drawing:
            tokens = self._drawn(logits, drawing)
            places = torch.tensor([i for i, _ in drawing], device=logits.device)
            logits[places] = logits[places].nan_to_num_(nan=0.0, posinf=0.0)
            logits[places, tokens.to(logits.device)] = CHOSEN
        return logits

    def _drawn(self, logits: Tensor, drawing: list[tuple[int, Row]]) -> Tensor:
        try:
            return draw(self._kernels, logits, drawing)
        except Exception:  # one bad row must not end the engine: each alone, the guilty one takes any token
            log.exception("drawing failed")
            return torch.stack([self._alone(logits, pair) for pair in drawing])

    def _alone(self, logits: Tensor, pair: tuple[int, Row]) -> Tensor:
        try:
            return draw(self._kernels, logits, [pair])[0]
        except Exception:
            return torch.zeros((), dtype=torch.int64)


def draw(kernels: Kernels, logits: Tensor, drawing: Sequence[tuple[int, Row]]) -> Tensor:
    """One token per (place in the batch, request); linked rows get that of their base's context."""
    first = _leads([row for _, row in drawing])
    own = sorted(set(first))
    rows = [Drawn(drawing[i][1], drawing[i][1].last) for i in own]
    composed = logits[torch.tensor([drawing[i][0] for i in own], device=logits.device)]
    scores = penalise(composed, *penalties(list(enumerate(rows)), composed, composed.shape[-1]))
    sampling = [row.sampling for row in rows]
    params = SampleRows(
        temperature=[s.temperature for s in sampling],
        top_k=[s.top_k for s in sampling],
        top_p=[s.top_p for s in sampling],
        min_p=[s.min_p for s in sampling],
    )
    uniform = [row.row.uniforms[row.num_generated] if row.sampling.temperature else 1.0 for row in rows]
    tokens = kernels.sample(scores, params, uniform)
    for i, drawn in enumerate(rows):
        forced, count = drawn.row.spec.forced, len(drawn.row.output)
        if count < len(forced):
            tokens[i] = forced[count]
    order = {lead: number for number, lead in enumerate(own)}
    return tokens[torch.tensor([order[lead] for lead in first], device=tokens.device)]


def _leads(rows: Sequence[Row]) -> list[int]:
    """For each row the number of the one that draws for it: the base's context of its group, where that is here."""
    links = [row.spec.link for row in rows]
    bases = {link.group: i for i, link in enumerate(links) if link is not None and link.view == 0}
    return [i if link is None else bases.get(link.group, i) for i, link in enumerate(links)]
