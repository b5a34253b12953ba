"""Contrastive generation: texts that the expert finds more likely than its partner does.

What's New in My Data? Novelty Exploration via Contrastive Generation (Isonuma and Titov 2024, arXiv:2410.14765).

Both forms sample from the composition `novelty`, `z = L_expert − λ L_partner` inside the expert's plausible tokens.
The plain form leaves the partner as it is. The iterative form trains a copy of the partner, after every round, on
all that was generated so far: what was found once is novel no longer, and the next round looks elsewhere. Its
optimiser is AdamW on the next-token loss of the generated tokens alone; a round ends when that loss has halved, or
after `MAX_STEPS` steps. A copy that is kept stands in the partner's place wherever that is composed: served, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from motet.audit.likelihood import chosen, score
from motet.audit.pair import Pair
from motet.audit.prompts import AuditContext
from motet.audit.settings import AuditSettings
from motet.composers.plan import Plan
from motet.composers.spec import build_plan, parse_composition
from motet.engines.torch import Member
from motet.engines.torch.offline import generate

MAX_STEPS = 20
ENOUGH = 0.5  # of the loss before the round


@dataclass(frozen=True, slots=True)
class NoveltySample:
    """One generated text. `gain`: mean of log p_expert − log p_partner over its tokens, in nats, by the untrained
    partner. `start`: the number of its context."""

    start: int
    round: int
    tokens: tuple[int, ...]
    text: str
    gain: float


@dataclass(frozen=True, slots=True)
class Learning:
    """What the copy of the partner did after a round: mean loss per token, in nats, before and after."""

    round: int
    steps: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Exploration:
    """All samples, the most novel first. `distinct_2`: the share of different pairs of neighbouring tokens."""

    samples: tuple[NoveltySample, ...]
    learning: tuple[Learning, ...]
    distinct_2: float


def explore(
    pair: Pair,
    starts: Sequence[AuditContext],
    settings: AuditSettings,
    *,
    iterative: bool,
    kept: PreTrainedModel | None = None,
) -> Exploration:
    """Samples from the contrast; sample i begins with start i modulo their number, in both forms. `kept`: a copy of the
    partner, which learns in the iterative form, from the last round as well."""
    rounds = settings.rounds if iterative else 1
    partner, learner = pair.partner, kept or (pair.learner() if rounds > 1 else None)
    found: list[tuple[int, int, tuple[int, ...]]] = []
    learning: list[Learning] = []
    for turn in range(rounds):
        own = range(turn * settings.samples // rounds, (turn + 1) * settings.samples // rounds)
        texts = _contrast(pair, partner, starts, own, settings)
        found += [(i % len(starts), turn, tokens) for i, tokens in zip(own, texts, strict=True) if tokens]
        is_last = turn + 1 == rounds
        if learner is not None and found and (kept is not None or not is_last):
            pairs = [(starts[i].partner, tokens) for i, _, tokens in found]
            learning.append(_learn(learner, pairs, pair.vocab_size, settings.lr, turn))
            partner = partner if is_last else pair.learned(learner)
    samples = [_sample(pair, starts, *entry) for entry in found]
    samples.sort(key=lambda sample: -sample.gain)
    return Exploration(tuple(samples), tuple(learning), distinct([sample.tokens for sample in samples], 2))


def contrast_plan(settings: AuditSettings) -> Plan:
    """Streams: the expert, then the partner."""
    written = {"strategy": "novelty", "base": "expert", "untuned": "partner"}
    composition = parse_composition({**written, "lambda": settings.weight, "alpha": settings.mask})
    return build_plan(composition, None, known=("expert", "partner"), token_id=lambda _: None)


def _contrast(
    pair: Pair, partner: Member, starts: Sequence[AuditContext], numbers: Sequence[int], settings: AuditSettings
) -> list[tuple[int, ...]]:
    """The samples of these numbers. A number has the same draws in both forms, whatever else is sampled with it."""
    rows = [starts[i % len(starts)] for i in numbers]
    return generate(
        {pair.expert.name: pair.expert, partner.name: partner},
        contrast_plan(settings),
        [(row.expert, row.partner) for row in rows],
        max_tokens=settings.max_tokens,
        ends=pair.ends,
        rows=settings.rows,
        seeds=[settings.seed * settings.samples + i for i in numbers],
    )


def _sample(pair: Pair, starts: Sequence[AuditContext], i: int, turn: int, tokens: tuple[int, ...]) -> NoveltySample:
    sides = ((pair.expert, starts[i].expert), (pair.partner, starts[i].partner))
    expert, partner = (chosen(score(model, ids, tokens, pair.vocab_size), tokens) for model, ids in sides)
    return NoveltySample(i, turn, tokens, pair.tokenizer.decode(tokens), float((expert - partner).mean()))


def _learn(
    model: PreTrainedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]], vocab: int, lr: float, turn: int
) -> Learning:
    """Trains the copy on (context, text) pairs until their loss is `ENOUGH` of what it was."""
    parameters = list(model.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    total = sum(len(text) for _, text in texts)
    losses: list[float] = []
    while True:
        optimizer.zero_grad()
        losses.append(_backward(model, texts, vocab, total))
        if len(losses) > MAX_STEPS or losses[-1] <= ENOUGH * losses[0]:
            break
        optimizer.step()
    model.requires_grad_(False)
    return Learning(turn, len(losses) - 1, losses[0], losses[-1])


def _backward(
    model: PreTrainedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]], vocab: int, total: int
) -> float:
    """Adds the gradient of the mean loss per token, one text at a time; the loss."""
    loss = 0.0
    for context, text in texts:
        ids = torch.tensor([[*context, *text]], device=model.device)[:, :-1]
        logits: Tensor = cast(Any, model)(input_ids=ids, use_cache=False).logits[0, -len(text) :, :vocab].float()
        part = F.cross_entropy(logits, torch.tensor(text, device=logits.device), reduction="sum") / total
        part.backward()
        loss += float(part.detach())
    return loss


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv:1510.03055); 0 where there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
