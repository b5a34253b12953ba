"""All criteria over one dataset, and the rows that are left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motet.training.data.curation.confidence import confidences, correct_by_confidence, filter_by_confidence
from motet.training.data.curation.correction import Answer, own_answers
from motet.training.data.curation.duplicates import find_duplicates
from motet.training.data.curation.information import filter_by_information
from motet.training.data.curation.rows import text_of, with_answer
from motet.training.data.curation.scores import counted_tokens, log_probs
from motet.training.data.curation.verdict import Verdict
from motet.training.data.dataset import TokenDataset
from motet.training.data.files import RecordSource
from motet.training.data.records import Record
from motet.training.data.tokens import Tokens
from motet.training.policy import Policy


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is asked of rows; None: not asked. Units as in the criteria's own modules."""

    duplicates: float | None = None
    confidence: float | None = None
    correct: float | None = None
    information: float | None = None
    answer_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Curation:
    """Verdicts of all criteria, and the new answers of rows that are to be replaced."""

    verdicts: list[Verdict]
    answers: Mapping[RecordSource, str]

    def rows(self, raw: Mapping[RecordSource, dict[str, Any]], records: Iterable[Record]) -> list[dict[str, Any]]:
        """The rows that stay, in their order. A row that one criterion removes is gone."""
        actions: defaultdict[RecordSource, set[str]] = defaultdict(set)
        for verdict in self.verdicts:
            actions[verdict.source].add(verdict.action)
        return [
            with_answer(raw[record.source], self.answers[record.source])
            if "replaced" in actions[record.source]
            else raw[record.source]
            for record in records
            if "removed" not in actions[record.source]
        ]


def drop_duplicates(records: Sequence[Record], threshold: float) -> Curation:
    """Duplicates alone, which need no model."""
    texts = [text_of(record) for record in records]
    return Curation(find_duplicates([record.source for record in records], texts, threshold), {})


def by_confidence(
    policy: Policy,
    dataset: TokenDataset,
    tokens: Tokens,
    pad_id: int,
    thresholds: Thresholds,
    answer: Answer | None = None,
) -> Curation:
    """Corrects and filters by a model's confidence; a row that is corrected is not removed for its old answer.

    Args:
        answer: how the model answers, needed to correct.
    """
    documents = dataset.sides[""][dataset.primary]
    sources = [record.source for record in dataset.records]
    confidence = confidences(log_probs(policy, documents, pad_id), counted_tokens(documents))
    verdicts: list[Verdict] = []
    answers: dict[RecordSource, str] = {}
    if thresholds.correct is not None:
        assert answer is not None, "corrections are the model's own answers"
        own, preference = own_answers(policy, answer, dataset, tokens, confidence, pad_id, thresholds.answer_tokens)
        verdicts = correct_by_confidence(sources, preference, thresholds.correct)
        replaced = {verdict.source for verdict in verdicts}
        answers = {source: text for source, text in zip(sources, own, strict=True) if source in replaced}
    if thresholds.confidence is not None:
        low = filter_by_confidence(sources, confidence, thresholds.confidence)
        verdicts += [verdict for verdict in low if verdict.source not in answers]
    return Curation(verdicts, answers)


def by_information(expert: Policy, untuned: Policy, dataset: TokenDataset, pad_id: int, threshold: float) -> Curation:
    """Removes rows that the expert explains no better than its untuned partner."""
    documents = dataset.sides[""][dataset.primary]
    sources = [record.source for record in dataset.records]
    scores = [log_probs(policy, documents, pad_id) for policy in (expert, untuned)]
    return Curation(filter_by_information(sources, scores[0], scores[1], threshold), {})


def merged(curations: Iterable[Curation]) -> Curation:
    """All verdicts together."""
    found = list(curations)
    verdicts = [verdict for curation in found for verdict in curation.verdicts]
    return Curation(verdicts, {source: text for curation in found for source, text in curation.answers.items()})
