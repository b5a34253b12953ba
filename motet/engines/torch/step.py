"""One step: the members' forwards, the composed distributions, the tokens, and what is reported of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from motet.composers.plan import Plan
from motet.composers.rows import Place, compose_rows, rule_places
from motet.engines.base import EngineError, NoTokenPossible, TokenOutput, TokenTrace
from motet.engines.edits import allowed_tokens, banned_tokens, grammar_mask, penalties, sample_rows
from motet.engines.torch.choice import Choice
from motet.engines.torch.model import Member, ModelWork
from motet.engines.torch.rule_state import advanced, gathered, judge
from motet.engines.torch.scheduler import Work
from motet.engines.traces import top_of, trace_of, traced_top
from motet.kernels.decode import Decoded, DecodeRows, Kernels, decode
from motet.kernels.dispatch import choose_kernels
from motet.kernels.layout import BitMask, ComposeRows, SparseEdits, edits_or_none, rows_index
from motet.kernels.logits import Logits

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
        self._kernels: Kernels | None = None

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
            failed.append((work[0].choice, _reason(error)))
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
        joined = Logits([logits[name][:, : work[0].choice.vocab_size] for name in names])
        starts = dict(zip(names, joined.starts, strict=True))
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
        if self._kernels is None:
            self._kernels = choose_kernels(joined.device)
        decoded = decode(self._kernels, joined, _inputs(self._plan(rows, joined.like()), joined, rows))
        states = advanced(joined, rows, _ints(decoded.token))
        outputs = _report(joined, decoded, rows, failed)
        for choice, state in states:
            choice.rule_state = state
        return outputs

    def _plan(self, rows: Sequence[Row], like: Tensor) -> ComposeRows:
        key: tuple[object, ...] = (like.device, like.dtype, *((row.choice, row.streams) for row in rows))
        if self._composition is None or self._composition[0] != key:
            plans: list[Plan] = [row.choice.plan for row in rows]
            self._composition = (key, compose_rows(plans, [row.streams for row in rows], like))
        return self._composition[1]


def _reason(error: Exception) -> EngineError:
    """What the client reads: a request's own fault as it is, a defect by its type, with the rest in the log."""
    if isinstance(error, EngineError):
        return error
    log.error("composing or sampling failed", exc_info=error)
    return EngineError(f"the step failed: {type(error).__name__}")


def _forward_member(member: Member, parts: Sequence[tuple[Work, int]], offsets: dict[tuple[int, int], int]) -> Tensor:
    """One forward; on success the slots know their new tokens, and the rules what they judge of the prompts."""
    items: list[tuple[ModelWork, Work, int]] = []
    for item, k in parts:
        stream = item.choice.streams[k]
        assert stream.slot is not None
        tokens = item.choice.inputs(stream, item.counts[k])
        rows = stream.judged_rows(len(tokens)) + item.positions
        items.append((ModelWork(stream.slot.index, stream.computed, tokens, rows), item, k))
    items.sort(key=lambda entry: (len(entry[0].tokens) > 1, entry[0].slot))
    logits = member.forward([entry[0] for entry in items])
    offset = 0
    for model_work, item, k in items:
        judged = model_work.num_logits - item.positions
        if judged:
            judge(item.choice, k, logits[offset : offset + judged])
        offsets[id(item.choice), k] = offset + judged
        offset += model_work.num_logits
        slot = item.choice.streams[k].slot
        assert slot is not None
        slot.tokens += model_work.tokens
    return logits


def _by_width(work: Sequence[Work]) -> list[list[Work]]:
    """Members of unlike vocabularies may run side by side; only those of one width are composed together."""
    groups: dict[int, list[Work]] = defaultdict(list)
    for item in work:
        groups[item.choice.vocab_size].append(item)
    return list(groups.values())


def _rules(rows: Sequence[Row], like: Tensor) -> SparseEdits | None:
    places: list[Place] = []
    for index, row in enumerate(rows):
        if row.choice.plan.rules is not None:
            written = row.choice.written(row.position)
            places += rule_places(index, row.choice.plan.rules, written, row.choice.ends)
    return edits_or_none(places, like)


def _inputs(plan: ComposeRows, logits: Logits, rows: Sequence[Row]) -> DecodeRows:
    """Masks and penalties of the requests touch drawn rows only: scored text is reported under the bare composition."""
    like = logits.like()
    grammar = _grammar(rows, like)  # it may fail: before any choice takes its next random number
    drawn = [(index, row.choice) for index, row in _drawn(rows)]
    bias, repetition, presence = penalties(drawn, like, logits.vocab)
    return DecodeRows(
        plan=plan,
        forced=[row.choice.shared[row.position] if row.is_forced else -1 for row in rows],
        sampling=sample_rows([row.choice.sampling for row in rows]),
        uniform=[
            row.choice.uniform() if row.choice.sampling.temperature and not row.is_forced else 1.0 for row in rows
        ],
        state=gathered(logits, rows),
        rules=_rules(rows, like),
        banned=edits_or_none([(i, t, 0.0) for i, row in _drawn(rows) for t in banned_tokens(row.choice)], like),
        allowed=allowed_tokens(drawn, like),
        grammar=grammar,
        bias=bias,
        repetition=repetition,
        presence=presence,
        top=[max(row.choice.sampling.top_logprobs, traced_top(row.choice.sampling.trace_top)) for row in rows],
        trace=[i for i, row in enumerate(rows) if row.choice.sampling.trace_top is not None],
    )


def _grammar(rows: Sequence[Row], like: Tensor) -> BitMask | None:
    drawn = [(index, row.choice) for index, row in _drawn(rows)]
    return grammar_mask([(i, choice.matcher, choice.generated) for i, choice in drawn if choice.matcher], like)


def _drawn(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    return [(index, row) for index, row in enumerate(rows) if not row.is_forced]


def _report(
    logits: Logits, decoded: Decoded, rows: Sequence[Row], failed: list[tuple[Choice, EngineError]]
) -> list[tuple[Choice, TokenOutput]]:
    """Advances the choices and tells what happened; a row without a finite choice fails its request alone."""
    tops = _tops(decoded, rows)
    traces = _traces(logits, decoded, rows)
    tokens, logprobs = _ints(decoded.token), _floats(decoded.logprob)
    # from here on nothing can fail: the choices advance all or none
    outputs: list[tuple[Choice, TokenOutput]] = []
    broken: set[int] = set()
    for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
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


def _tops(decoded: Decoded, rows: Sequence[Row]) -> dict[int, tuple[tuple[int, float], ...]]:
    """The most likely tokens of the rows that ask for them."""
    return {index: top_of(decoded, index, row.choice.sampling.top_logprobs) for index, row in enumerate(rows)}


def _traces(logits: Logits, decoded: Decoded, rows: Sequence[Row]) -> dict[int, TokenTrace]:
    """Traces of the rows that ask for them."""
    wanted = [(index, row, row.choice.sampling.trace_top) for index, row in enumerate(rows)]
    return {
        index: trace_of(logits.logprobs(rows_index(row.streams)), decoded, index, count)
        for index, row, count in wanted
        if count is not None
    }


def _ints(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())
