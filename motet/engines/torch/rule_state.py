"""What a rule knows of a choice beside its streams' log-probs: GeDi's sums of log-probs under both classes, a gate's
or a router's share, the shares of adapters.

The sums begin with the prompt, so an answer is the same whether its prompt is read, reported (`echo`) or scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from motet.composers.rules import AdaptersRule, DiscriminatorRule, RoutedRule
from motet.engines.torch.choice import Choice
from motet.engines.torch.rows import ChoiceRow
from motet.kernels.layout import rows_index
from motet.kernels.logits import Logits


def judge(choice: Choice, k: int, logits: Tensor) -> None:
    """Adds the next judged tokens of stream k's context, which its raw logits (n, V) predict."""
    stream = choice.streams[k]
    start = 1 + max(stream.computed, stream.reusable)
    tokens = torch.tensor(stream.context[start : start + len(logits)], device=logits.device)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = (logits / choice.plan.streams[k].temperature).log_softmax(-1)
    choice.rule_state[k - 1] += float(logprobs.gather(-1, tokens[:, None]).double().sum())


def gathered(logits: Logits, rows: Sequence[ChoiceRow]) -> Tensor | None:
    """The state (R, 3) that each row's rule starts from, None where no rule has one.

    Forced and guessed tokens of earlier rows of the same step count: a choice's rows follow one another.
    """
    if not any(_has_state(row) or isinstance(row.choice.plan.rule, RoutedRule) for row in rows):
        return None
    state = torch.zeros(len(rows), 3, dtype=logits.dtype, device=logits.device)
    sums: dict[Choice, list[float]] = {}
    for r, row in enumerate(rows):
        if _has_state(row):
            before = sums.get(row.choice, row.choice.rule_state)
            state[r] = state.new_tensor(before)
            if (token := row.assumed) is not None:
                sums[row.choice] = _added(logits, row, token, before)
        elif isinstance(rule := row.plan.rule, RoutedRule):
            assert isinstance(row.reading, float), "the plan was supported: its base has such a head"
            state[r, 0] = rule.share(row.reading)
    return state


def advanced(logits: Logits, rows: Mapping[int, ChoiceRow], tokens: Sequence[int]) -> list[tuple[Choice, list[float]]]:
    """The choices' states after this step; nothing is changed here, since a step may still fail.

    Args:
        rows: those whose tokens are taken, by their places among the `tokens` of the step.
    """
    sums: dict[Choice, list[float]] = {}
    for index, row in rows.items():
        if _has_state(row):
            sums[row.choice] = _added(logits, row, tokens[index], sums.get(row.choice, row.choice.rule_state))
    return list(sums.items())


def decided(rows: Iterable[ChoiceRow]) -> list[tuple[Choice, tuple[float, ...]]]:
    """The shares of adapters that the rows have decided for their choices' answers: those behind the prompts."""
    return [
        (row.choice, row.reading)
        for row in rows
        if isinstance(row.choice.plan.rule, AdaptersRule)
        and isinstance(row.reading, tuple)
        and row.position == row.choice.num_prompt_forced
    ]


def _has_state(row: ChoiceRow) -> bool:
    return isinstance(row.choice.plan.rule, DiscriminatorRule)


def _added(logits: Logits, row: ChoiceRow, token: int, sums: Sequence[float]) -> list[float]:
    temperature = [[stream.temperature] for stream in row.choice.plan.streams[1:3]]
    scores = logits.scores(rows_index(row.streams[1:3]))
    logprobs = (scores / scores.new_tensor(temperature)).log_softmax(-1)
    wanted, unwanted = cast("list[float]", logprobs[:, token].tolist())
    return [sums[0] + wanted, sums[1] + unwanted, sums[2] + 1.0]
