"""One step: the members' forwards, the composed distributions, the tokens, and what is reported of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from motet.composers.rows import compose_rows
from motet.composers.rules import AdaptersRule
from motet.composers.timeline import HeadReading
from motet.engines.base import EngineError, NoTokenPossible
from motet.engines.decoding import confidence_of, decode_rows, reported, trace_of, voiced_rows
from motet.engines.outputs import TokenOutput, TokenTrace
from motet.engines.torch.choice import Choice
from motet.engines.torch.model import Member, ModelWork, early_rows
from motet.engines.torch.rows import ChoiceRow
from motet.engines.torch.rule_state import advanced, decided, gathered, judge
from motet.engines.torch.translated import translated
from motet.engines.torch.work import Work
from motet.kernels.decode import Decoded, DecodeRows, Kernels, decode
from motet.kernels.dispatch import choose_kernels
from motet.kernels.exits import ExitRow, premature
from motet.kernels.layout import ComposeRows, rows_index
from motet.kernels.logits import Logits

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """One step as it goes, and what came of it.

    Attributes:
        logits: (n, V) raw logits of each member that was run.
        first_rows: of (choice, stream number): the row of its first position in its member's logits. What a stream has
            computed while it drafted is there as well.
        early_rows: of (choice, layer): the same of the base's rows behind an early layer.
        readings: what each member's head says of the rows of its logits; members without one are not there.
        outputs: in row order.
        failures: why choices failed.
    """

    work: Sequence[Work] = ()
    logits: dict[Member, Tensor] = field(default_factory=dict[Member, Tensor])
    first_rows: dict[tuple[Choice, int], int] = field(default_factory=dict[tuple[Choice, int], int])
    early_rows: dict[tuple[Choice, int], int] = field(default_factory=dict[tuple[Choice, int], int])
    readings: dict[Member, list[HeadReading]] = field(default_factory=dict[Member, list[HeadReading]])
    outputs: list[tuple[Choice, TokenOutput]] = field(default_factory=list[tuple[Choice, TokenOutput]])
    failures: dict[Choice, EngineError] = field(default_factory=dict[Choice, EngineError])

    def forward(self) -> None:
        """Runs each distinct member once; one that raises fails its choices alone."""
        parts: dict[Member, list[tuple[Work, int]]] = defaultdict(list)
        for item in self.work:
            for k, stream in enumerate(item.choice.streams):
                if item.counts[k] or item.drafted(k):
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
        found: list[Tensor] = []
        readings: list[Tensor] = []
        for item, k in parts:
            stream = item.choice.streams[k]
            assert stream.slot is not None
            if drafted := item.drafted(k):
                self.first_rows[item.choice, k] = len(found)
                found += drafted
                readings += item.drafted_readings(k)
                continue
            tokens = item.choice.inputs(stream, item.counts[k])
            rows = stream.judged_rows(len(tokens)) + item.positions_of(k)
            work = ModelWork(stream.slot.index, stream.computed, tokens, rows, item.exits_of(k), stream.adapter)
            items.append((work, item, k))
        items.sort(key=lambda entry: (len(entry[0].tokens) > 1, entry[0].slot))
        row = len(found)
        if items:
            found.append(member.forward([entry[0] for entry in items]))
            readings += [] if member.readings is None else [member.readings]
        self.logits[member] = logits = torch.cat(found) if len(found) > 1 else found[0]
        if readings:
            told = cast("list[float | list[float]]", torch.cat(readings).tolist())
            self.readings[member] = [tuple(one) if isinstance(one, list) else one for one in told]
        for model_work, item, k in items:
            judged = model_work.num_logits - item.positions_of(k)
            if judged:
                judge(item.choice, k, logits[row : row + judged])
            self.first_rows[item.choice, k] = row + judged
            row += model_work.num_logits
            slot = item.choice.streams[k].slot
            assert slot is not None
            slot.tokens += model_work.tokens
        for layer, number in early_rows([entry[0] for entry in items]):
            model_work, item, _ = items[number]
            self.early_rows[item.choice, layer] = row
            row += model_work.num_logits

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
        keys = [(item.choice, k) for item in work for k in item.heard]
        members = {(choice, k): stream.member for choice, k in keys if (stream := choice.streams[k]).tokens is None}
        plain = list(dict.fromkeys(members.values()))
        others = translated(self.logits, self.first_rows, work)
        width = work[0].choice.vocab_size
        joined = Logits([*(self.logits[member][:, :width] for member in plain), *(matrix for matrix, _ in others)])
        starts = dict(zip(plain, joined.starts, strict=False))
        first = {key: starts[member] + self.first_rows[key] for key, member in members.items()}
        for start, (_, own) in zip(joined.starts[len(plain) :], others, strict=True):
            first |= {key: start + row for key, row in own.items()}
        found = [
            ChoiceRow(
                item.choice,
                item.choice.position + t,
                tuple(first[item.choice, k] + t for k in item.heard),
                self._reading(item.choice, t),
                item.voice,
            )
            for item in work
            for t in range(item.positions)
        ]
        return joined, self._left_early(joined, found, starts)

    def _left_early(self, logits: Logits, rows: list[ChoiceRow], starts: Mapping[Member, int]) -> list[ChoiceRow]:
        """The rows with those of their early exits behind their other streams, each of the layer that is chosen."""
        if not any(row.choice.exit_layers for row in rows):
            return rows
        asked: list[ExitRow] = []
        for row in rows:
            for own in row.choice.plan.exits:
                ahead = starts[row.choice.streams[0].member] + row.position - row.choice.position
                early = [ahead + self.early_rows[row.choice, layer] for layer in own.layers]
                asked.append(ExitRow(row.streams[0], early, own.select))
        chosen = zip(asked, premature(logits, asked), strict=True)
        found: list[ChoiceRow] = []
        for row in rows:
            places = [next(chosen) for _ in row.choice.plan.exits]
            early = tuple(exit_row.early[place] for exit_row, place in places)
            layers = tuple(own.layers[place] for own, (_, place) in zip(row.choice.plan.exits, places, strict=True))
            found.append(replace(row, streams=row.streams + early, layers=layers) if places else row)
        return found

    def _reading(self, choice: Choice, t: int) -> HeadReading | None:
        """What the base's head says of the choice's position t of this step, where its plan asks. What is decided
        behind the prompt holds from there on."""
        if not choice.plan.heads:
            return None
        if choice.shares is not None:
            return choice.shares
        if isinstance(choice.plan.rule, AdaptersRule):
            t = min(t, choice.num_prompt_forced - choice.position)
        return self.readings[choice.streams[0].member][self.first_rows[choice, 0] + t]

    def advance(
        self,
        rows: Mapping[int, ChoiceRow],
        decoded: Decoded,
        traces: Mapping[int, TokenTrace],
        composed: Tensor | None = None,
    ) -> None:
        """Appends the tokens to their choices and reports them; a row without a finite token fails its choice alone.

        Args:
            rows: by their places in what was decoded; guesses before them were right.
            composed: (R, V) from `voiced_rows`.
        """
        tops = {index: reported(decoded, index, row.choice.sampling) for index, row in rows.items()}
        sure = {i: confidence_of(composed, i, row.choice.sampling.confidence) for i, row in rows.items()}
        writers = {index: row.writer if row.is_drawn else None for index, row in rows.items()}
        tokens, logprobs = ints(decoded.token), cast("list[float]", decoded.logprob.tolist())
        ended: set[Choice] = set()
        # from here on nothing can fail: the choices advance all or none
        for index, row in rows.items():
            choice = row.choice
            if choice in ended or choice in self.failures:
                continue
            token, logprob, is_drawn = tokens[index], logprobs[index], row.is_drawn
            if math.isnan(logprob) or (logprob == -math.inf and is_drawn):
                self.failures[choice] = _failure(row.position, logprob)
                continue
            choice.position += 1
            if is_drawn:
                choice.append(token)
            finish = choice.finish_reason()
            if finish is not None:
                ended.add(choice)
            told = tops[index], traces.get(index), finish, sure[index], writers[index]
            self.outputs.append((choice, TokenOutput(choice.index, token, logprob, not is_drawn, *told)))


def verified(rows: Sequence[ChoiceRow], tokens: Sequence[int]) -> dict[int, ChoiceRow]:
    """The rows whose histories came true, by their places: those up to a choice's first wrong guess.

    What was drawn at a row is what would have been drawn without guesses: by the composed distribution behind the same
    tokens, with the random number of that position. So answers do not depend on guesses (Leviathan et al. 2023,
    arXiv:2211.17192, for greedy answers). Where guesses are judged by the ratio of probabilities, the row has taken the
    guess or another token already, and was right or wrong in the same sense.
    """
    found: dict[int, ChoiceRow] = {}
    missed: set[Choice] = set()
    for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.choice in missed:
            continue
        found[index] = row
        if row.assumed not in (None, token):
            missed.add(row.choice)
    return found


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
        """Composes and samples; if that fails, each choice alone, so that only the failing choice is lost; and that one
        without its guesses, since what cannot be computed behind a wrong guess is nobody's fault."""
        try:
            self._compose_and_sample(step, work)
        except Exception as error:
            if len(work) == 1 and work[0].choice.guesses:
                self._contained(step, [replace(work[0], positions=1)])
            elif len(work) == 1:
                step.failures[work[0].choice] = _reason(error)
            else:
                for item in work:
                    self._contained(step, [item])

    def _compose_and_sample(self, step: Step, work: Sequence[Work]) -> None:
        """All rows over one vocabulary: one composition, one draw, one report."""
        logits, rows = step.rows(work)
        decoding = self._decode_rows(logits, rows)
        decoded = decode(self.kernels(logits.device), logits, decoding)
        asked = (row.choice.sampling.reads_rows for row in rows)
        composed = voiced_rows(self.kernels(logits.device), logits, decoding, asked)
        taken = verified(rows, ints(decoded.token))
        states = advanced(logits, taken, ints(decoded.token))
        step.advance(taken, decoded, _traces(logits, decoded, taken, composed), composed)
        for choice, state in states:
            choice.rule_state = state
        for choice, shares in decided(taken.values()):
            choice.shares = shares

    def kernels(self, device: torch.device) -> Kernels:
        """Chosen when they are first needed."""
        if self._kernels is None:
            self._kernels = choose_kernels(device)
        return self._kernels

    def _decode_rows(self, logits: Logits, rows: Sequence[ChoiceRow]) -> DecodeRows:
        matchers = [row.matcher for row in rows]
        wanted = decode_rows(self._composed(rows, logits.like()), logits, rows, matchers, gathered(logits, rows))
        proposals = [found for index, row in enumerate(rows) if (found := row.proposal(index)) is not None]
        return replace(wanted, proposals=proposals) if proposals else wanted

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
    logits: Logits, decoded: Decoded, rows: Mapping[int, ChoiceRow], composed: Tensor | None
) -> dict[int, TokenTrace]:
    """Traces of the rows that ask for them."""
    traces: dict[int, TokenTrace] = {}
    for index, row in rows.items():
        sampling = row.choice.sampling
        if sampling.trace_top is not None:
            members = logits.logprobs(rows_index(row.streams))
            voiced = composed if sampling.trace_members else None
            trace = trace_of(row.plan, members, decoded, index, sampling.trace_top, voiced)
            trace = replace(trace, layers=row.layers)
            shares = isinstance(row.reading, tuple)
            traces[index] = replace(trace, alpha=row.reading) if shares else replace(trace, head=row.reading)
    return traces


def ints(values: Tensor) -> list[int]:
    return cast("list[int]", values.tolist())
