"""One step: the members' forwards, the composed distributions, the tokens, and what is reported of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from motet.composers.rows import compose_rows
from motet.engines.base import EngineError, NoTokenPossible, TokenOutput, TokenTrace
from motet.engines.decoding import decode_rows, top_of, trace_of, voiced_rows
from motet.engines.torch.choice import Choice, ChoiceRow
from motet.engines.torch.model import Member, ModelWork
from motet.engines.torch.rule_state import advanced, gathered, judge
from motet.engines.torch.scheduler import Work
from motet.kernels.decode import Decoded, DecodeRows, Kernels, decode
from motet.kernels.dispatch import choose_kernels
from motet.kernels.layout import ComposeRows, rows_index
from motet.kernels.logits import Logits

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """One step as it goes, and what came of it.

    Attributes:
        logits: (n, V) raw logits of each member that was run.
        first_rows: of (choice, stream number): the row of its first position in its member's logits.
        outputs: in row order.
        failures: why choices failed.
    """

    work: Sequence[Work] = ()
    logits: dict[Member, Tensor] = field(default_factory=dict[Member, Tensor])
    first_rows: dict[tuple[Choice, int], int] = field(default_factory=dict[tuple[Choice, int], int])
    outputs: list[tuple[Choice, TokenOutput]] = field(default_factory=list[tuple[Choice, TokenOutput]])
    failures: dict[Choice, EngineError] = field(default_factory=dict[Choice, EngineError])

    def forward(self) -> None:
        """Runs each distinct member once; one that raises fails its choices alone."""
        parts: dict[Member, list[tuple[Work, int]]] = defaultdict(list)
        for item in self.work:
            for k, stream in enumerate(item.choice.streams):
                if item.counts[k]:
                    parts[stream.member].append((item, k))
        for member, own in parts.items():
            try:
                self._forward_member(member, own)
            except Exception as error:
                log.exception("model %s failed in a step", member.name)
                reason = EngineError(f"model {member.name!r} failed while computing: {type(error).__name__}")
                self.failures |= {item.choice: reason for item, _ in own}

    def _forward_member(self, member: Member, parts: Sequence[tuple[Work, int]]) -> None:
        """One forward of (work, stream number) pairs; then the slots hold their new tokens, and the rules what they
        judge of the prompts."""
        items: list[tuple[ModelWork, Work, int]] = []
        for item, k in parts:
            stream = item.choice.streams[k]
            assert stream.slot is not None
            tokens = item.choice.inputs(stream, item.counts[k])
            rows = stream.judged_rows(len(tokens)) + item.positions
            items.append((ModelWork(stream.slot.index, stream.computed, tokens, rows), item, k))
        items.sort(key=lambda entry: (len(entry[0].tokens) > 1, entry[0].slot))
        logits = member.forward([entry[0] for entry in items])
        row = 0
        for model_work, item, k in items:
            judged = model_work.num_logits - item.positions
            if judged:
                judge(item.choice, k, logits[row : row + judged])
            self.first_rows[item.choice, k] = row + judged
            row += model_work.num_logits
            slot = item.choice.streams[k].slot
            assert slot is not None
            slot.tokens += model_work.tokens
        self.logits[member] = logits

    def by_width(self) -> list[list[Work]]:
        """What can be composed: members of unlike vocabularies may run side by side, but only distributions of one
        width are composed together."""
        groups: dict[int, list[Work]] = defaultdict(list)
        for item in self.work:
            if item.positions and item.choice not in self.failures:
                groups[item.choice.vocab_size].append(item)
        return list(groups.values())

    def rows(self, work: Sequence[Work]) -> tuple[Logits, list[ChoiceRow]]:
        """The members' joined logits over the width of this work, and its rows in them."""
        members = list({stream.member: None for item in work for stream in item.choice.streams})
        joined = Logits([self.logits[member][:, : work[0].choice.vocab_size] for member in members])
        starts = dict(zip(members, joined.starts, strict=True))
        return joined, [
            ChoiceRow(
                item.choice,
                item.choice.position + t,
                tuple(
                    starts[stream.member] + self.first_rows[item.choice, k] + t
                    for k, stream in enumerate(item.choice.streams)
                ),
            )
            for item in work
            for t in range(item.positions)
        ]

    def advance(self, rows: Sequence[ChoiceRow], decoded: Decoded, traces: Mapping[int, TokenTrace]) -> None:
        """Appends the tokens to their choices and reports them; a row without a finite token fails its choice alone."""
        tops = [top_of(decoded, index, row.choice.sampling.top_logprobs) for index, row in enumerate(rows)]
        tokens, logprobs = _ints(decoded.token), cast("list[float]", decoded.logprob.tolist())
        # from here on nothing can fail: the choices advance all or none
        for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            choice = row.choice
            if choice in self.failures:
                continue
            if math.isnan(logprob) or (logprob == -math.inf and row.is_drawn):
                self.failures[choice] = _failure(row.position, logprob)
                continue
            choice.position += 1
            if row.is_drawn:
                choice.append(token)
            forced, finish = not row.is_drawn, choice.finish_reason()
            output = TokenOutput(choice.index, token, logprob, forced, tops[index], traces.get(index), finish)
            self.outputs.append((choice, output))


class StepRunner:
    """Runs planned work. It keeps the composition of the last step, which seldom changes while decoding."""

    def __init__(self) -> None:
        self._composition: tuple[tuple[object, ...], ComposeRows] | None = None
        self._kernels: Kernels | None = None

    def run(self, work: Sequence[Work]) -> Step:
        step = Step(work)
        step.forward()
        for group in step.by_width():
            self._contained(step, group)
        return step

    def _contained(self, step: Step, work: Sequence[Work]) -> None:
        """Composes and samples; if that fails, each choice alone, so that only the failing choice is lost."""
        try:
            self._compose_and_sample(step, work)
        except Exception as error:
            if len(work) == 1:
                step.failures[work[0].choice] = _reason(error)
                return
            for item in work:
                self._contained(step, [item])

    def _compose_and_sample(self, step: Step, work: Sequence[Work]) -> None:
        """All rows over one vocabulary: one composition, one draw, one report."""
        logits, rows = step.rows(work)
        if self._kernels is None:
            self._kernels = choose_kernels(logits.device)
        decoding = self._decode_rows(logits, rows)
        decoded = decode(self._kernels, logits, decoding)
        composed = voiced_rows(self._kernels, logits, decoding, (row.choice.sampling.trace_members for row in rows))
        states = advanced(logits, rows, _ints(decoded.token))
        step.advance(rows, decoded, _traces(logits, decoded, rows, composed))
        for choice, state in states:
            choice.rule_state = state

    def _decode_rows(self, logits: Logits, rows: Sequence[ChoiceRow]) -> DecodeRows:
        matchers = [row.matcher for row in rows]
        return decode_rows(self._composed(rows, logits.like()), logits, rows, matchers, gathered(logits, rows))

    def _composed(self, rows: Sequence[ChoiceRow], like: Tensor) -> ComposeRows:
        key: tuple[object, ...] = (like.device, like.dtype, *((row.plan, row.streams) for row in rows))
        if self._composition is None or self._composition[0] != key:
            plans = [row.plan for row in rows]
            self._composition = (key, compose_rows(plans, [row.streams for row in rows], like))
        return self._composition[1]


def _reason(error: Exception) -> EngineError:
    """What the client reads: a request's own fault as it is, a defect by its type, with the rest in the log."""
    if isinstance(error, EngineError):
        return error
    log.error("composing or sampling failed", exc_info=error)
    return EngineError(f"the step failed: {type(error).__name__}")


def _failure(position: int, logprob: float) -> EngineError:
    if math.isnan(logprob):
        return EngineError(f"the request failed at token {position}: its composed distribution is not a number")
    return NoTokenPossible(f"no token is possible at position {position}: the masks of the request exclude each other")


def _traces(
    logits: Logits, decoded: Decoded, rows: Sequence[ChoiceRow], composed: Tensor | None
) -> dict[int, TokenTrace]:
    """Traces of the rows that ask for them."""
    traces: dict[int, TokenTrace] = {}
    for index, row in enumerate(rows):
        sampling = row.choice.sampling
        if sampling.trace_top is not None:
            members = logits.logprobs(rows_index(row.streams))
            voiced = composed if sampling.trace_members else None
            traces[index] = trace_of(row.plan, members, decoded, index, sampling.trace_top, voiced)
    return traces


def _ints(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())
