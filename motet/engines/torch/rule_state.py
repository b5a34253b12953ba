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
    judged = _judgements(logits, [(r, row, token) for r, row in enumerate(rows) if (token := row.assumed) is not None])
    states: list[Sequence[float]] = []
    sums: dict[Choice, list[float]] = {}
    for r, row in enumerate(rows):
        before: Sequence[float] = (0.0, 0.0, 0.0)
        if _has_state(row):
            before = sums.get(row.choice, row.choice.rule_state)
            if r in judged:
                sums[row.choice] = _added(before, judged[r])
        elif isinstance(rule := row.plan.rule, RoutedRule):
            assert isinstance(row.reading, float), "the plan was supported: its base has such a head"
            before = rule.share(row.reading), 0.0, 0.0
        states.append(before)
    return torch.tensor(states, dtype=logits.dtype, device=logits.device)


def advanced(logits: Logits, rows: Mapping[int, ChoiceRow], tokens: Sequence[int]) -> list[tuple[Choice, list[float]]]:
    """The choices' states after this step; nothing is changed here, since a step may still fail.

    Args:
        rows: those whose tokens are taken, by their places among the `tokens` of the step.
    """
    judged = _judgements(logits, [(index, row, tokens[index]) for index, row in rows.items()])
    sums: dict[Choice, list[float]] = {}
    for index, judgement in judged.items():
        choice = rows[index].choice
        sums[choice] = _added(sums.get(choice, choice.rule_state), judgement)
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


def _judgements(logits: Logits, asked: Sequence[tuple[int, ChoiceRow, int]]) -> dict[int, list[float]]:
    """Log-probs of the token under the wanted and the unwanted class, by the numbers of the (number, row, token) whose
    rules have sums."""
    judging = [entry for entry in asked if _has_state(entry[1])]
    if not judging:
        return {}
    found: list[Tensor] = []
    for k in (1, 2):
        scores = logits.scores(rows_index([row.streams[k] for _, row, _ in judging], logits.device))
        temperature = scores.new_tensor([[row.choice.plan.streams[k].temperature] for _, row, _ in judging])
        tokens = torch.tensor([[token] for _, _, token in judging], device=scores.device)
        found.append((scores / temperature).log_softmax(-1).gather(-1, tokens))
    pairs = cast("list[list[float]]", torch.cat(found, -1).tolist())
    return {number: pair for (number, _, _), pair in zip(judging, pairs, strict=True)}


def _added(sums: Sequence[float], judgement: Sequence[float]) -> list[float]:
    wanted, unwanted = judgement
    return [sums[0] + wanted, sums[1] + unwanted, sums[2] + 1.0]
