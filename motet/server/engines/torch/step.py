"""One step: the members' forwards, the composed distributions, the tokens, and what is reported of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from motet.composers.plan import Plan
from motet.composers.rows import Place, compose_rows, rule_places
from motet.kernels.reference import ComposeRows, SparseEdits, compose, edits, kl_divergence, penalise, restrict
from motet.kernels.sampling import SampleRows, sample
from motet.server.engines.base import EngineError, NoTokenPossible, TokenOutput, TokenTrace
from motet.server.engines.torch.choice import Choice
from motet.server.engines.torch.model import Member, ModelWork
from motet.server.engines.torch.scheduler import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One position of one choice: `streams[k]` is the row of stream k in the step's log-probs."""

    choice: Choice
    position: int
    streams: tuple[int, ...]

    @property
    def is_forced(self) -> bool:
        return self.position < self.choice.num_forced


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outputs in row order, and the choices that failed with the reason."""

    outputs: list[tuple[Choice, TokenOutput]]
    failed: list[tuple[Choice, EngineError]]


class StepRunner:
    """Runs planned work. It keeps the composition of the last step, which seldom changes while decoding."""

    def __init__(self) -> None:
        self._composition: tuple[tuple[object, ...], ComposeRows] | None = None

    def run(self, work: Sequence[Work]) -> StepResult:
        failed: list[tuple[Choice, EngineError]] = []
        logits, offsets = self._forward(work, failed)
        lost = {id(choice) for choice, _ in failed}
        outputs: list[tuple[Choice, TokenOutput]] = []
        for group in _by_width([item for item in work if item.positions and id(item.choice) not in lost]):
            outputs += self._contained(group, logits, offsets, failed)
        return StepResult(outputs, failed)

    def _contained(
        self,
        work: Sequence[Work],
        logits: dict[str, Tensor],
        offsets: dict[tuple[int, int], int],
        failed: list[tuple[Choice, EngineError]],
    ) -> list[tuple[Choice, TokenOutput]]:
        """Composes and samples; if that fails, each choice alone, so that only the guilty one is lost."""
        try:
            return self._compose_and_sample(work, logits, offsets, failed)
        except Exception as error:
            if len(work) > 1:
                return [out for item in work for out in self._contained([item], logits, offsets, failed)]
            log.exception("composing or sampling failed")
            failed.append((work[0].choice, EngineError(f"the step failed: {type(error).__name__}")))
            return []

    def _forward(
        self, work: Sequence[Work], failed: list[tuple[Choice, EngineError]]
    ) -> tuple[dict[str, Tensor], dict[tuple[int, int], int]]:
        """Each distinct member once. Returns logits per member and the first row of each (choice, stream)."""
        per_member: dict[str, list[tuple[Work, int]]] = defaultdict(list)
        for item in work:
            for k, stream in enumerate(item.choice.streams):
                if item.counts[k]:
                    per_member[stream.member.name].append((item, k))
        logits: dict[str, Tensor] = {}
        offsets: dict[tuple[int, int], int] = {}
        for name, parts in per_member.items():
            member = parts[0][0].choice.streams[parts[0][1]].member
            try:
                logits[name] = _forward_member(member, parts, offsets)
            except Exception as error:
                log.exception("model %s failed in a step", name)
                reason = EngineError(f"model {name!r} failed while computing: {type(error).__name__}")
                failed += [(choice, reason) for choice in {item.choice: None for item, _ in parts}]
        return logits, offsets

    def _compose_and_sample(
        self,
        work: Sequence[Work],
        logits: dict[str, Tensor],
        offsets: dict[tuple[int, int], int],
        failed: list[tuple[Choice, EngineError]],
    ) -> list[tuple[Choice, TokenOutput]]:
        """All rows over one vocabulary: one composition, one draw, one report."""
        names = list({stream.member.name: None for item in work for stream in item.choice.streams})
        starts: dict[str, int] = {}
        parts: list[Tensor] = []
        total = 0
        for name in names:
            starts[name] = total
            total += logits[name].shape[0]
            parts.append(logits[name].log_softmax(-1, dtype=torch.float32))
        logprobs = parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])
        rows = [
            Row(
                item.choice,
                item.choice.position + t,
                tuple(
                    starts[stream.member.name] + offsets[id(item.choice), k] + t
                    for k, stream in enumerate(item.choice.streams)
                ),
            )
            for item in work
            for t in range(item.positions)
        ]
        composition, rules = self._rows(rows, logprobs), _rules(rows, logprobs)
        composed = compose(logprobs, composition, rules)
        banned, allowed = _limits(rows, composed)
        if banned is not None or allowed:
            composed = restrict(composed, banned, allowed)
            empty = (composed == -math.inf).all(-1)
            if bool(empty.any()):  # plausibility gives way to what the request allows
                bare = compose(logprobs, replace(composition, masks=()), rules)
                composed[empty] = restrict(bare, banned, allowed)[empty]
        tokens = _tokens(composed, rows)
        return _report(logprobs, composed, rows, tokens, failed)

    def _rows(self, rows: Sequence[Row], like: Tensor) -> ComposeRows:
        key: tuple[object, ...] = (like.shape, *((row.choice, row.streams) for row in rows))
        if self._composition is None or self._composition[0] != key:
            plans: list[Plan] = [row.choice.plan for row in rows]
            self._composition = (key, compose_rows(plans, [row.streams for row in rows], like))
        return self._composition[1]


def _forward_member(member: Member, parts: Sequence[tuple[Work, int]], offsets: dict[tuple[int, int], int]) -> Tensor:
    """One forward; on success the slots know their new tokens."""
    items: list[tuple[ModelWork, Work, int]] = []
    for item, k in parts:
        stream = item.choice.streams[k]
        assert stream.slot is not None
        tokens = item.choice.inputs(stream, item.counts[k])
        items.append((ModelWork(stream.slot.index, stream.computed, tokens, item.positions), item, k))
    items.sort(key=lambda entry: (len(entry[0].tokens) > 1, entry[0].slot))
    logits = member.forward([entry[0] for entry in items])
    offset = 0
    for model_work, item, k in items:
        offsets[id(item.choice), k] = offset
        offset += model_work.num_logits
        slot = item.choice.streams[k].slot
        assert slot is not None
        slot.tokens += model_work.tokens
    return logits


def _by_width(work: Sequence[Work]) -> list[list[Work]]:
    """Members of unlike vocabularies may run side by side; only those of one width are composed together."""
    groups: dict[int, list[Work]] = defaultdict(list)
    for item in work:
        groups[item.choice.streams[0].member.vocab_size].append(item)
    return list(groups.values())


def _rules(rows: Sequence[Row], like: Tensor) -> SparseEdits | None:
    places: list[Place] = []
    for index, row in enumerate(rows):
        if row.choice.plan.rules is not None:
            written = row.choice.written(row.position)
            places += rule_places(index, row.choice.plan.rules, written, row.choice.ends)
    return edits(places, like) if places else None


def _limits(rows: Sequence[Row], like: Tensor) -> tuple[SparseEdits | None, list[tuple[int, Tensor]]]:
    """Banned and allowed tokens of the requests; scored text is reported under the bare composition."""
    banned: list[Place] = []
    allowed: list[tuple[int, Tensor]] = []
    for index, row in enumerate(rows):
        if row.is_forced:
            continue
        banned += [(index, token, 0.0) for token in banned_tokens(row.choice)]
        ids = row.choice.sampling.allowed_token_ids
        if ids is not None:
            allowed.append((index, torch.tensor(ids, dtype=torch.int64, device=like.device)))
    return (edits(banned, like) if banned else None, allowed)


def banned_tokens(choice: Choice) -> list[int]:
    """Tokens that may not come next: ends before `min_tokens`, and last tokens of bad words."""
    sampling = choice.sampling
    banned: list[int] = []
    if choice.num_generated < sampling.min_tokens:
        banned += [*choice.eos_token_ids, *sampling.stop_token_ids]
    if sampling.bad_words:
        generated = choice.generated
        for *start, last in sampling.bad_words:
            if not start or generated[-len(start) :] == start:
                banned.append(last)
    return banned


def _tokens(composed: Tensor, rows: Sequence[Row]) -> list[int]:
    """The token of every row: the forced one, or a draw."""
    drawn = [index for index, row in enumerate(rows) if not row.is_forced]
    tokens = [row.choice.shared[row.position] if row.is_forced else -1 for row in rows]
    if drawn:
        bias, repetition, presence = _penalties([rows[index].choice for index in drawn], composed)
        scores = composed if len(drawn) == len(rows) else composed[drawn]
        scores = penalise(scores, bias, repetition, presence)
        sampling = [rows[index].choice.sampling for index in drawn]
        params = SampleRows(
            temperature=[s.temperature for s in sampling],
            top_k=[s.top_k for s in sampling],
            top_p=[s.top_p for s in sampling],
            min_p=[s.min_p for s in sampling],
        )
        uniform = [rows[i].choice.uniform() if s.temperature else 1.0 for i, s in zip(drawn, sampling, strict=True)]
        for index, token in zip(drawn, _ints(sample(scores, params, uniform)), strict=True):
            tokens[index] = token
    return tokens


def _penalties(choices: Sequence[Choice], like: Tensor) -> tuple[SparseEdits | None, ...]:
    """(bias, repetition, presence and frequency) edits of the choices."""
    bias: list[Place] = []
    multiplied: list[Place] = []
    presence: list[Place] = []
    for row, choice in enumerate(choices):
        s = choice.sampling
        bias += [(row, token, value) for token, value in s.logit_bias]
        if s.presence_penalty or s.frequency_penalty:
            presence += [(row, t, -s.presence_penalty - s.frequency_penalty * n) for t, n in choice.counts.items()]
        if s.repetition_penalty != 1.0:
            seen = {*choice.streams[0].context, *choice.shared}
            multiplied += [(row, token, s.repetition_penalty) for token in seen if token < like.shape[-1]]
    return tuple(edits(places, like) if places else None for places in (bias, multiplied, presence))


def _report(
    logprobs: Tensor,
    composed: Tensor,
    rows: Sequence[Row],
    tokens: Sequence[int],
    failed: list[tuple[Choice, EngineError]],
) -> list[tuple[Choice, TokenOutput]]:
    """Advances the choices and tells what happened; a row without a finite choice fails its request alone."""
    column = torch.tensor(tokens, dtype=torch.int64, device=composed.device)[:, None]
    chosen = _floats(composed.gather(-1, column).squeeze(-1))
    tops = _tops(composed, rows)
    traces = _traces(logprobs, composed, rows, tokens)
    # from here on nothing can fail: the choices advance all or none
    outputs: list[tuple[Choice, TokenOutput]] = []
    broken: set[int] = set()
    for index, (row, token, logprob) in enumerate(zip(rows, tokens, chosen, strict=True)):
        choice = row.choice
        if id(choice) in broken:
            continue
        if math.isnan(logprob) or (logprob == -math.inf and not row.is_forced):
            broken.add(id(choice))
            failed.append((choice, _failure(row.position, logprob)))
            continue
        choice.position += 1
        if not row.is_forced:
            choice.append(token)
        top = tops.get(index, ())
        output = TokenOutput(
            choice.index, token, logprob, row.is_forced, top, traces.get(index), choice.finish_reason()
        )
        outputs.append((choice, output))
    return outputs


def _failure(position: int, logprob: float) -> EngineError:
    if math.isnan(logprob):
        return EngineError(f"the request failed at token {position}: its composed distribution is not a number")
    return NoTokenPossible(f"no token is possible at position {position}: the masks of the request exclude each other")


def _tops(composed: Tensor, rows: Sequence[Row]) -> dict[int, tuple[tuple[int, float], ...]]:
    """The most likely tokens of the rows that ask for them."""
    asking = [index for index, row in enumerate(rows) if row.choice.sampling.top_logprobs]
    if not asking:
        return {}
    count = min(composed.shape[-1], max(rows[index].choice.sampling.top_logprobs for index in asking))
    source = composed if len(asking) == len(rows) else composed[asking]
    values, ids = source.topk(count)
    return {
        index: tuple(zip(_ints(t), _floats(v), strict=True))[: rows[index].choice.sampling.top_logprobs]
        for index, t, v in zip(asking, ids, values, strict=True)
    }


def _traces(logprobs: Tensor, composed: Tensor, rows: Sequence[Row], tokens: Sequence[int]) -> dict[int, TokenTrace]:
    """Traces of the rows that ask for them."""
    return {
        index: _trace(logprobs, composed[index], row, tokens[index])
        for index, row in enumerate(rows)
        if row.choice.sampling.trace_top is not None
    }


def _trace(logprobs: Tensor, composed: Tensor, row: Row, token: int) -> TokenTrace:
    """What each voice did to one token: composed (V,) against the rows of its streams."""
    base = logprobs[row.streams[0]]
    count = row.choice.sampling.trace_top or 0
    return TokenTrace(
        member_logprobs=tuple(_floats(logprobs[list(row.streams), token])),
        kl=float(kl_divergence(composed[None], base[None])),
        base_rank=int((base > base[token]).sum()),
        argmax_moved=bool(base.argmax() != composed.argmax()),
        base_top=_top(base, count),
        composed_top=_top(composed, count),
    )


def _top(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    return tuple(zip(_ints(ids), _floats(values), strict=True))


def _ints(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())
