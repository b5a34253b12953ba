"""The audit as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from motet.audit.answers import Shifts, measure, off_topic
from motet.audit.novelty import Exploration, explore
from motet.audit.pair import Pair
from motet.audit.prompts import AuditPrompt, contexts, start
from motet.audit.refusals import is_refusal, refusal_pattern
from motet.audit.settings import AuditSettings

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer's judgements; None where an answer cannot be judged."""

    refusal: bool
    partner_refusal: bool
    off_topic: bool | None


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that the report shows. `starts`: what the samples begin with, by their number."""

    shifts: Shifts
    judged: tuple[Judged, ...]
    starts: tuple[str, ...]
    plain: Exploration
    iterative: Exploration

    @property
    def refusal_rate(self) -> float:
        return _share([judged.refusal for judged in self.judged])

    @property
    def partner_refusal_rate(self) -> float:
        return _share([judged.partner_refusal for judged in self.judged])

    @property
    def off_topic_rate(self) -> float | None:
        """Among the answers that can be judged."""
        known = [judged.off_topic for judged in self.judged if judged.off_topic is not None]
        return _share(known) if known else None

    @property
    def mean_kl(self) -> float:
        answers = self.shifts.answers
        return sum(answer.kl for answer in answers) / len(answers)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def audit(
    pair: Pair,
    prompts: Sequence[AuditPrompt],
    settings: AuditSettings,
    log: Log = lambda _: None,
    kept: PreTrainedModel | None = None,
) -> Audit:
    """Compares an expert with its partner.

    Half of the contrastive samples begin with nothing, the others with the prompts in turn. `log` is called with what
    is being done, a line each. `kept`: a copy of the partner (`Pair.learner`), which learns what was found.

    Raises:
        AuditError: prompts that do not fit the models, patterns that are none; before anything is computed.
    """
    pattern = refusal_pattern(settings.refusals)
    read = contexts(pair, prompts, settings.partner_reads, settings.max_tokens)
    log(f"answers to {len(prompts)} prompts")
    shifts = measure(pair, prompts, read, settings)
    topics = off_topic(pair, prompts, shifts.answers, settings.others)
    judged = tuple(
        Judged(is_refusal(answer.expert, pattern), is_refusal(answer.partner, pattern), topic)
        for answer, topic in zip(shifts.answers, topics, strict=True)
    )
    starts = [part for context in read for part in (start(pair), context)]
    names = [part for prompt in prompts for part in ("", prompt.text)]
    log(f"{settings.samples} samples of the contrast")
    plain = explore(pair, starts, settings, iterative=False)
    log(f"{settings.samples} samples of the contrast in {settings.rounds} rounds of learning")
    iterative = explore(pair, starts, settings, iterative=True, kept=kept)
    return Audit(shifts, judged, tuple(names), plain, iterative)
