"""What a dataset's settings mean for its records, and which of them do not go together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from motet.settings import nearest
from motet.training.batch import PromptForm
from motet.training.data.errors import listing
from motet.training.data.records import Record, Text
from motet.training.data.spans import REST
from motet.training.data.tokens import Tokens
from motet.training.objectives.objective import RecordKind
from motet.training.recipe import Batching, Dataset


def has_prompts(records: Sequence[Record]) -> bool:
    """Whether the records are prompts and answers, not texts."""
    return any(not isinstance(part, Text) for record in records for part in record.sides.values())


def has_turns(records: Sequence[Record]) -> bool:
    """Whether a chat template has anything to write: prompts and answers that are no pieces of one text."""
    parts = [part for record in records for part in record.sides.values() if not isinstance(part, Text)]
    return any(not part.is_cut for part in parts)


def primary_form(spec: Dataset, records: Sequence[Record], tokens: Tokens) -> PromptForm:
    """The form of the batches themselves."""
    if spec.template == "auto":
        return "chat" if tokens.has_chat_template and has_turns(records) else "plain"
    return spec.template


def loss_of(spec: Dataset, records: Sequence[Record]) -> Literal["completion", "all"]:
    """Answers alone where there are prompts, unless the recipe says otherwise."""
    if spec.loss == "auto":
        return "completion" if has_prompts(records) else "all"
    return spec.loss


def check_settings(
    name: str,
    spec: Dataset,
    kind: RecordKind,
    records: Sequence[Record],
    tokens: Tokens,
    batching: Batching,
    forms: Collection[PromptForm],
) -> list[str]:
    """Everything that does not go together, one line each."""
    if not records:
        return []
    place, prompts = f"data.{name}", has_prompts(records)
    loss = loss_of(spec, records)
    whole_needed = kind != "documents" or len(forms) > 1
    faults = {
        f"{place}.template: chat needs messages or prompt + completion; the records are texts": (
            spec.template == "chat" and not prompts
        ),
        f"{place}.template: the tokenizer {tokens.hf.name_or_path} has no chat template; allowed: plain": (
            "chat" in forms and prompts and not tokens.has_chat_template
        ),
        f"{place}.loss: completion needs prompts; the records are texts": loss == "completion" and not prompts,
        f"{place}.loss: all is for documents, these are {kind}; allowed: completion": (
            loss == "all" and prompts and kind != "documents"
        ),
        f"{place}.loss: all does not go with streams of several prompt forms ({listing(forms)}); allowed: completion": (
            loss == "all" and prompts and len(forms) > 1
        ),
        f"{place}.template: chat needs prompts; the records' chosen and rejected are whole texts": (
            "chat" in forms and prompts and not has_turns(records)
        ),
        f"{place}.loss: all counts every token, but rows weigh their messages; allowed: completion": (
            loss == "all" and any(_weighs(record) for record in records)
        ),
        f"{place}: texts and prompts in one dataset": prompts
        and any(isinstance(part, Text) for record in records for part in record.sides.values()),
        f"batch.packing: wrap cuts documents, {place} needs whole ones ({kind}; forms: {listing(forms)}); "
        "allowed: none, fit": batching.packing == "wrap" and whole_needed,
        "batch.max_length: 1 leaves nothing to predict; allowed: 2 or more": batching.max_length < 2,
    }
    return [problem for problem, holds in faults.items() if holds]


def _weighs(record: Record) -> bool:
    answers = [part for part in record.sides.values() if not isinstance(part, Text)]
    return any(m.role == "assistant" and m.weight != 1 for part in answers for m in part.messages)


def check_span_kinds(name: str, spec: Dataset, records: Sequence[Record]) -> list[str]:
    """Kinds that the recipe weighs but no record names."""
    kinds = {span.weight for record in records for span in record.spans if isinstance(span.weight, str)}
    known = sorted(kinds)
    return [
        f"data.{name}.span_weights: no record has a span of the kind {kind!r}; "
        f"found: {listing(known)}.{nearest(kind, known) or f' To weigh all alike: data.{name}.span_weights={{}}'}"
        for kind in spec.span_weights
        if kind != REST and kind not in kinds
    ]
