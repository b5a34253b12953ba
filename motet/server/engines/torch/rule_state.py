"""What a rule gathers over the tokens of a choice: GeDi's sums of log-probs under both classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from motet.composers.plan import Discriminator
from motet.kernels.layout import rows_index
from motet.kernels.logits import Logits
from motet.server.engines.torch.choice import Choice


class StepRow(Protocol):
    """A position of a choice with the rows of its streams (see `step.Row`)."""

    @property
    def choice(self) -> Choice: ...
    @property
    def position(self) -> int: ...
    @property
    def streams(self) -> tuple[int, ...]: ...
    @property
    def is_forced(self) -> bool: ...


def gathered(logits: Logits, rows: Sequence[StepRow]) -> Tensor | None:
    """The state (R, 3) that each row's rule starts from, None where no rule has one.

    Forced tokens of earlier rows of the same step count: a choice's rows follow one another.
    """
    if not any(_has_state(row) for row in rows):
        return None
    state = torch.zeros(len(rows), 3, dtype=logits.dtype, device=logits.device)
    for r, row in enumerate(rows):
        if _has_state(row):
            state[r] = state.new_tensor(row.choice.rule_state)
            if row.is_forced:
                _add(logits, row, row.choice.shared[row.position])
    return state


def advance(logits: Logits, rows: Sequence[StepRow], tokens: Sequence[int]) -> None:
    """Adds what was drawn; forced tokens were added by `gathered`."""
    for row, token in zip(rows, tokens, strict=True):
        if _has_state(row) and not row.is_forced:
            _add(logits, row, token)


def _has_state(row: StepRow) -> bool:
    return isinstance(row.choice.plan.rule, Discriminator)


def _add(logits: Logits, row: StepRow, token: int) -> None:
    wanted, unwanted = cast("list[float]", logits.logprobs(rows_index(row.streams[1:3]))[:, token].tolist())
    sums = row.choice.rule_state
    row.choice.rule_state = [sums[0] + wanted, sums[1] + unwanted, sums[2] + 1.0]
