"""What both engines do around a draw: the rows of a step as the kernels read them, and what is reported of the tokens.

A sampling parameter is wired here, for both engines: read from `SamplingParams` in `decode_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor

from motet.composers.confidence import Confidence
from motet.composers.plan import Plan
from motet.composers.rows import Place, rule_places
from motet.engines.base import Matcher, SamplingParams
from motet.engines.outputs import TokenTrace
from motet.engines.voices import voices_of
from motet.kernels.cores import confidence
from motet.kernels.decode import NO_END, Decoded, DecodeRows, Kernels, compose_restricted
from motet.kernels.layout import BitMask, ComposeRows, Measure, SparseEdits, edits_or_none
from motet.kernels.logits import Logits
from motet.kernels.sampling import SampleRows

Words = bytes | bytearray | memoryview  # a grammar's mask (see `Matcher.allowed`)


class AllowedTokens:
    """The only tokens of an answer, as a tensor that is made once: they may be as many as the vocabulary has."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: Sequence[int] | Tensor = ids

    def on(self, device: torch.device) -> Tensor:
        if not isinstance(self._ids, Tensor) or self._ids.device != device:
            self._ids = torch.as_tensor(self._ids, dtype=torch.int64, device=device)
        return self._ids

    @classmethod
    def of(cls, sampling: SamplingParams) -> AllowedTokens | None:
        """None where all tokens are allowed."""
        return None if sampling.allowed_token_ids is None else cls(sampling.allowed_token_ids)


class Answer(Protocol):
    """An answer whose next token is drawn or scored."""

    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def allowed(self) -> AllowedTokens | None:
        """The only tokens that may be drawn, where the request names them."""
        ...

    @property
    def ends(self) -> Sequence[int]:
        """Tokens that end an answer under its plan."""
        ...

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """The same, none of them where the request ignores ends."""
        ...

    @property
    def num_generated(self) -> int: ...
    @property
    def generated(self) -> list[int]: ...
    @property
    def counts(self) -> Mapping[int, int]:
        """How often each token was generated."""
        ...

    @property
    def seen(self) -> Set[int]:
        """Tokens of the base's context and all that followed."""
        ...

    def uniform(self) -> float:
        """The draw in (0, 1] that belongs to the next token."""
        ...


class StepRow(Protocol):
    """One row of a step: a position of an answer, and the token behind it."""

    @property
    def answer(self) -> Answer: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def forced(self) -> int:
        """The token that is scored, −1 where one is drawn."""
        ...

    @property
    def is_drawn(self) -> bool:
        """Whether the request's own masks and penalties hold for the token."""
        ...

    @property
    def written(self) -> list[int]:
        """The tokens before this position that count for rules as written by the composition."""
        ...


def decode_rows(
    plan: ComposeRows,
    logits: Logits,
    rows: Sequence[StepRow],
    matchers: Sequence[Matcher | None],
    state: Tensor | None = None,
) -> DecodeRows:
    """The R rows of a step as the kernels read them.

    Masks and penalties of the requests touch drawn rows only: scored text is reported under the bare composition.

    Args:
        plan: how the rows are composed.
        matchers: (R) follow the grammars of the drawn rows.
        state: (R, 3) that the rows' rules start from (see `cores.rule_scores`).

    Raises:
        GrammarFailed: before any answer takes its next draw.
    """
    like = logits.like()
    params = [row.answer.sampling for row in rows]
    drawn = [(index, row.answer) for index, row in enumerate(rows) if row.is_drawn]
    words = {i: m.allowed(answer.generated) for i, answer in drawn if (m := matchers[i]) is not None}
    bias, repetition, presence = _penalties(drawn, like, logits.vocab)
    return DecodeRows(
        plan=plan,
        forced=[row.forced for row in rows],
        sampling=_sample_rows(params),
        uniform=[
            row.answer.uniform() if row.is_drawn and own.temperature else 1.0
            for row, own in zip(rows, params, strict=True)
        ],
        state=state,
        rules=rule_edits(rows, like),
        banned=edits_or_none([(i, t, 0.0) for i, answer in drawn for t in _banned_tokens(answer, words.get(i))], like),
        allowed=_allowed_tokens(drawn, like),
        grammar=_grammar_mask(words, like),
        bias=bias,
        repetition=repetition,
        presence=presence,
        top=[max(0 if own.logprob_token_ids else own.top_logprobs, _traced_top(own.trace_top)) for own in params],
        named=[
            (i, torch.tensor(own.logprob_token_ids, dtype=torch.int64, device=like.device))
            for i, own in enumerate(params)
            if own.logprob_token_ids
        ],
        trace=[i for i, own in enumerate(params) if own.trace_top is not None],
        held={i: answer.ends[0] if answer.ends else NO_END for i, answer in drawn if rows[i].plan.masks_hold},
    )


def rule_edits(rows: Sequence[StepRow], like: Tensor) -> SparseEdits | None:
    """What the rows' compositions add to single tokens; a row whose plan has no rules is not read further."""
    places: list[Place] = []
    for index, row in enumerate(rows):
        if row.plan.rules is not None:
            places += rule_places(index, row.plan.rules, row.written, row.answer.ends)
    return edits_or_none(places, like)


def voiced_rows(kernels: Kernels, logits: Logits, rows: DecodeRows, asked: Iterable[bool]) -> Tensor | None:
    """Composed log-probs (R, V) where any row reports what is read off them: what draws need not have written them."""
    return compose_restricted(kernels, logits, rows).logprobs if any(asked) else None


def confidence_of(composed: Tensor | None, row: int, measure: Confidence | None) -> float | None:
    """How sure the row's distribution is, of the composed log-probs (R, V) from `voiced_rows`; None: nobody asks."""
    if measure is None or composed is None:
        return None
    return float(confidence(composed[row : row + 1], torch.tensor([Measure[measure.upper()]], device=composed.device)))


def trace_of(
    plan: Plan, members: Tensor, decoded: Decoded, row: int, count: int, composed: Tensor | None = None
) -> TokenTrace:
    """What each voice did to the token of row `row`: what was decoded, beside the log-probs (K, V) of its streams, the
    base first; `count` alternatives before and after. The row is one of `DecodeRows.trace`; `composed` (R, V) from
    `voiced_rows`, where its voices are told."""
    assert decoded.kl is not None
    assert decoded.base_rank is not None
    assert decoded.top_values is not None
    assert decoded.top_tokens is not None
    base_top = _pairs(*members[0].topk(min(count, members.shape[-1])))
    composed_top = _pairs(decoded.top_values[row], decoded.top_tokens[row])
    alpha = tuple(alpha for alpha in _floats(decoded.alpha[row]) if not math.isnan(alpha))
    told = dict.fromkeys(token for token, _ in (*composed_top[:count], *base_top))
    return TokenTrace(
        member_logprobs=tuple(_floats(members[:, decoded.token[row]])),
        kl=float(decoded.kl[row]),
        base_rank=int(decoded.base_rank[row]),
        argmax_moved=bool(members[0, composed_top[0][0]] < members[0].amax()),  # a tie of the base is no move
        base_top=base_top,
        composed_top=composed_top[:count],
        alpha=alpha,
        voices=None if composed is None else voices_of(plan, members, composed[row], decoded.token[row], alpha, told),
    )


def reported(decoded: Decoded, row: int, sampling: SamplingParams) -> tuple[tuple[int, float], ...]:
    """The alternatives of a row that its request asks for, best first."""
    if not sampling.logprob_token_ids or decoded.named is None:
        return top_of(decoded, row, sampling.top_logprobs)
    pairs = zip(sampling.logprob_token_ids, _floats(decoded.named[row]), strict=True)
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def top_of(decoded: Decoded, row: int, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most likely tokens of a row, best first."""
    if not count or decoded.top_values is None or decoded.top_tokens is None:
        return ()
    return _pairs(decoded.top_values[row], decoded.top_tokens[row])[:count]


def _sample_rows(params: Sequence[SamplingParams]) -> SampleRows:
    return SampleRows(
        temperature=[s.temperature for s in params],
        top_k=[s.top_k for s in params],
        top_p=[s.top_p for s in params],
        min_p=[s.min_p for s in params],
    )


def _banned_tokens(answer: Answer, grammar: Words | None) -> list[int]:
    """Tokens that may not come next: ends before `min_tokens` or under `ignore_eos`, unless the grammar allows nothing
    else, and last tokens of bad words."""
    sampling = answer.sampling
    banned: list[int] = []
    early = answer.num_generated < sampling.min_tokens
    if (early or sampling.ignore_eos) and not (grammar and _is_finished(grammar, answer.ends)):
        banned += [*answer.eos_token_ids, *(sampling.stop_token_ids if early else ())]
    if sampling.bad_words:
        generated, words = answer.generated, _by_place(_Words(sampling.bad_words))
        banned += words.get(None, {}).get((), ())
        if generated:  # a word of many tokens costs nothing before its last but one has come
            for start, ends in words.get(generated[-1], {}).items():
                if tuple(generated[-len(start) :]) == start:
                    banned += ends
    return banned


class _Words:
    """Bad words of one request, the same only as themselves: comparing thousands of tokens would cost what it saves."""

    def __init__(self, words: Sequence[tuple[int, ...]]) -> None:
        self.words = words

    def __hash__(self) -> int:
        return id(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Words) and other.words is self.words


@lru_cache(64)
def _by_place(bad: _Words) -> dict[int | None, dict[tuple[int, ...], list[int]]]:
    """The last token but one (None: there is none) → all tokens before the last → last tokens."""
    found: dict[int | None, dict[tuple[int, ...], list[int]]] = {}
    for *start, last in bad.words:
        found.setdefault(start[-1] if start else None, {}).setdefault(tuple(start), []).append(last)
    return found


def _allowed_tokens(drawn: Iterable[tuple[int, Answer]], like: Tensor) -> list[tuple[int, Tensor]]:
    """The only tokens that may come next, of the (row, answer) pairs whose requests name them."""
    return [(index, allowed.on(like.device)) for index, answer in drawn if (allowed := answer.allowed) is not None]


def _penalties(drawn: Iterable[tuple[int, Answer]], like: Tensor, vocab: int) -> tuple[SparseEdits | None, ...]:
    """(bias, repetition, presence and frequency) edits of (row, answer) pairs."""
    bias: list[Place] = []
    multiplied: list[Place] = []
    presence: list[Place] = []
    for index, answer in drawn:
        s = answer.sampling
        bias += [(index, token, value) for token, value in s.logit_bias]
        if s.presence_penalty or s.frequency_penalty:
            presence += [(index, t, -s.presence_penalty - s.frequency_penalty * n) for t, n in answer.counts.items()]
        if s.repetition_penalty != 1.0:
            multiplied += [(index, token, s.repetition_penalty) for token in answer.seen if token < vocab]
    return tuple(edits_or_none(places, like) for places in (bias, multiplied, presence))


def _is_finished(grammar: Words, ends: Iterable[int]) -> bool:
    """Whether a grammar's mask allows ends alone."""
    mask = bytearray(grammar)
    for token in ends:
        if token // 8 < len(mask):
            mask[token // 8] &= ~(1 << token % 8)
    return not any(mask)


def _grammar_mask(words: Mapping[int, Words], like: Tensor) -> BitMask | None:
    """The bit masks by row; None where there are none."""
    if not words:
        return None
    packed = torch.stack([torch.frombuffer(bytearray(part), dtype=torch.int32) for part in words.values()])
    return BitMask(tuple(words), packed.to(like.device))


def _traced_top(count: int | None) -> int:
    """Alternatives that a step decodes for a trace of `count` alternatives: its most likely token at least."""
    return 0 if count is None else max(1, count)


def _pairs(values: Tensor, tokens: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple(zip(cast("list[int]", tokens.tolist()), _floats(values), strict=True))


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())
