"""The expert's and its partner's greedy answers, and how far apart the two models are along the expert's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from motet.audit.likelihood import chosen, score
from motet.audit.pair import Pair
from motet.audit.prompts import AuditContext, AuditPrompt, start
from motet.audit.settings import AuditSettings
from motet.composers.plan import single
from motet.engines.torch import Member
from motet.engines.torch.offline import generate
from motet.kernels.reference import kl_divergence

PLAUSIBLE = 1e-4  # mean probability below which a token's shift is of no interest


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One prompt, both greedy answers. `kl`: mean of KL(expert ‖ partner) over the positions of the expert's answer,
    in nats; 0 where that is empty. `tokens`: the expert's."""

    prompt: str
    expert: str
    partner: str
    kl: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenShift:
    """`shift`: mean over all positions of log p_expert − log p_partner, in nats. `expert` and `partner`: mean
    probabilities. `written`: how often it stands in the expert's answers."""

    token: int
    text: str
    shift: float
    expert: float
    partner: float
    written: int


@dataclass(slots=True)
class _Sums:
    """Sums over positions, (V,) float64."""

    positions: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, expert: Tensor, partner: Tensor) -> None:
        self.positions += len(expert)
        for name, rows in (("shift", expert - partner), ("expert", expert.exp()), ("partner", partner.exp())):
            self.parts[name] = self.parts.get(name, 0.0) + rows.double().sum(0)

    def mean(self, name: str) -> Tensor:
        return self.parts[name] / self.positions


@dataclass(frozen=True, slots=True)
class Shifts:
    """`answers` in the prompts' order; tokens by their shift, the largest first."""

    answers: tuple[AnswerPair, ...]
    raised: tuple[TokenShift, ...]
    lowered: tuple[TokenShift, ...]


def measure(
    pair: Pair, prompts: Sequence[AuditPrompt], contexts: Sequence[AuditContext], settings: AuditSettings
) -> Shifts:
    """Tokens count as raised where the expert gives them a mean probability of at least `PLAUSIBLE`, as lowered where
    the partner does: rare tokens move far without meaning anything."""
    experts = greedy(pair, pair.expert, [context.expert for context in contexts], settings)
    partners = greedy(pair, pair.partner, [context.partner for context in contexts], settings)
    sums = _Sums()
    answers: list[AnswerPair] = []
    for prompt, context, ours, theirs in zip(prompts, contexts, experts, partners, strict=True):
        kl = _compare(pair, context, ours, sums) if ours else 0.0
        texts = pair.tokenizer.decode(ours), pair.tokenizer.decode(theirs)
        answers.append(AnswerPair(prompt.text, *texts, kl, ours))
    written = Counter(token for tokens in experts for token in tokens)
    raised, lowered = _ranked(pair, sums, written, settings.shown) if sums.positions else ((), ())
    return Shifts(tuple(answers), raised, lowered)


def greedy(
    pair: Pair, member: Member, contexts: Sequence[Sequence[int]], settings: AuditSettings
) -> list[tuple[int, ...]]:
    """One model's greedy answers."""
    return generate(
        {member.name: member},
        single(member.name),
        [(ids,) for ids in contexts],
        max_tokens=settings.max_tokens,
        ends=pair.ends,
        rows=settings.rows,
    )


def _compare(pair: Pair, context: AuditContext, tokens: Sequence[int], sums: _Sums) -> float:
    """Adds an answer's positions to the sums; its mean divergence."""
    expert = score(pair.expert, context.expert, tokens, pair.vocab_size)
    partner = score(pair.partner, context.partner, tokens, pair.vocab_size)
    sums.add(expert, partner)
    return float(kl_divergence(expert, partner).mean())


def _ranked(
    pair: Pair, sums: _Sums, written: Counter[int], count: int
) -> tuple[tuple[TokenShift, ...], tuple[TokenShift, ...]]:
    shift, expert, partner = sums.mean("shift"), sums.mean("expert"), sums.mean("partner")

    def named(token: int) -> TokenShift:
        values = float(shift[token]), float(expert[token]), float(partner[token])
        return TokenShift(token, pair.tokenizer.label_of(token), *values, written[token])

    order = cast("list[int]", shift.argsort(descending=True).tolist())
    raised = [token for token in order if shift[token] > 0 and expert[token] >= PLAUSIBLE]
    lowered = [token for token in reversed(order) if shift[token] < 0 and partner[token] >= PLAUSIBLE]
    return tuple(map(named, raised[:count])), tuple(map(named, lowered[:count]))


def off_topic(
    pair: Pair, prompts: Sequence[AuditPrompt], answers: Sequence[AnswerPair], others: int
) -> list[bool | None]:
    """Whether an answer belongs to its prompt no more than other answers do; [derived] our own measure.

    An answer is off-topic where the prompt's text, read behind it by the partner, is no likelier than behind the
    answers to the next `others` prompts of the list, on average. Answers that have nothing to do with their prompts
    are off-topic about every other time. The other direction, an answer behind prompts, would say little: a greedy
    answer was chosen for being likely there. None where it cannot be said: an empty answer, or nothing to compare.
    """
    first = start(pair).partner
    found: list[bool | None] = []
    for i, (prompt, given) in enumerate(zip(prompts, answers, strict=True)):
        following = [answers[(i + k) % len(answers)].tokens for k in range(1, len(answers))]
        rest = [tokens for tokens in following if tokens][:others]
        asked = pair.tokenizer.encode(f" {prompt.text}")
        if not rest or not given.tokens or not asked:
            found.append(None)
            continue
        own, *elsewhere = (_likelihood(pair, (*first, *tokens), asked) for tokens in (given.tokens, *rest))
        found.append(own <= sum(elsewhere) / len(elsewhere))
    return found


def _likelihood(pair: Pair, context: Sequence[int], tokens: Sequence[int]) -> float:
    """Mean log-prob per token under the partner."""
    return float(chosen(score(pair.partner, context, tokens, pair.vocab_size), tokens).mean())
