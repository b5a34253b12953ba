"""A recipe's dataset, read, checked, rendered and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from motet.training.batch import Example, PromptForm
from motet.training.data.chat import answers_apart
from motet.training.data.documents import Documents, DocumentsBuilder
from motet.training.data.errors import DataError, RowError
from motet.training.data.labels import label_indices
from motet.training.data.reading import read_records
from motet.training.data.records import Label, Record
from motet.training.data.rendering import Forms, Renderer, forms_of
from motet.training.data.settings import check_settings, check_span_kinds, loss_of, primary_form
from motet.training.data.tokens import Tokens
from motet.training.objectives.objective import RecordKind
from motet.training.recipe import Batching, Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # records that are tokenised at once


@dataclass(frozen=True)
class TokenDataset:
    """Records and their tokens, a document for each record (and side). A row with several answers makes several records
    where the chat template asks for that (`answers_apart`).

    Attributes:
        primary: the form of the batches themselves; `views` are the forms of `Batch.views`.
        sides: the documents of each side (`""`, also `counterfactual`; or `chosen` and `rejected`) in each form.
        labels: (len,) the index of each record's class, or 1 for desirable and 0 for undesirable.
        classes: the labels behind the indices.
        num_truncated: documents that were cut to `max_length`.
    """

    name: str
    kind: RecordKind
    primary: PromptForm
    views: tuple[PromptForm, ...]
    records: Sequence[Record]
    sides: Mapping[str, Mapping[PromptForm, Documents]]
    labels: NDArray[np.int64] | None
    classes: tuple[Label, ...]
    num_truncated: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sides in the primary form."""
        return sum(len(forms[self.primary].ids) for forms in self.sides.values())

    @property
    def num_counted(self) -> int:
        """Targets of all sides."""
        return sum(int(forms[self.primary].counted.sum()) for forms in self.sides.values())

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(len,) the tokens of each record in its longest side and form: what a row must hold."""
        return np.max([documents.lengths for forms in self.sides.values() for documents in forms.values()], axis=0)

    def examples(self, form: PromptForm | None = None, side: str | None = None) -> list[Example]:
        """The documents of one side (by default the first) in one form (by default the primary one)."""
        return [self.example(index, form, side) for index in range(len(self))]

    def example(self, index: int, form: PromptForm | None = None, side: str | None = None) -> Example:
        """One document; `form` and `side` as for `examples`."""
        documents = self.sides[next(iter(self.sides)) if side is None else side][form or self.primary]
        part = documents.slice(index)
        ids, counted, weights = documents.ids[part], documents.counted[part], documents.weights[part]
        return Example(ids.tolist(), counted.tolist(), weights.tolist(), self.records[index].source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that training reads: tokens, masks, weights, labels."""
        digest = hashlib.sha256(f"{self.kind} {self.primary} {self.views} {self.classes}".encode())
        for side, forms in self.sides.items():
            for form, documents in forms.items():
                digest.update(f"{side} {form}".encode())
                for array in (documents.ids, documents.counted, documents.weights, documents.starts):
                    digest.update(array.tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()


def load_dataset(
    name: str,
    spec: Dataset,
    kind: RecordKind,
    *,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
    batching: Batching,
    views: Collection[PromptForm] = (),
) -> TokenDataset:
    """Reads, checks and tokenises a dataset.

    Args:
        name: its name in the recipe's `data`.
        kind: what the objective needs its records to be.
        root: where relative files are looked for.
        views: the forms of `Batch.views`, besides the form of the batches themselves.

    Raises:
        DataError: everything that is wrong with files, rows and settings.
    """
    tokens = Tokens(tokenizer)
    records, problems = read_records(name, spec, kind, root)
    primary = primary_form(spec, records, tokens)
    views = tuple(sorted(set(views)))  # sets have another order in every process
    forms = forms_of(primary, views)
    settings = check_settings(name, spec, kind, records, tokens, batching, forms)
    if settings or not records:
        raise DataError(settings + problems)
    problems = check_span_kinds(name, spec, records) + problems
    if kind in ("documents", "clusters") and "chat" in forms and loss_of(spec, records) == "completion":
        records = [one for record in records for one in answers_apart(tokens, record)]
    length = None if batching.packing == "wrap" else batching.max_length
    weights = spec.span_weights
    renderer = Renderer(tokens, primary, forms, loss_of(spec, records), weights, length, batching.truncate)
    sides, truncated, bad = _tokenise(renderer, records)
    labels, classes, unlabelled = label_indices(name, kind, records)
    if problems + bad + unlabelled:
        raise DataError(problems + bad + unlabelled)
    return TokenDataset(name, kind, primary, views, records, sides, labels, classes, truncated)


def _tokenise(
    renderer: Renderer, records: Sequence[Record]
) -> tuple[dict[str, dict[PromptForm, Documents]], int, list[str]]:
    """The documents of each side and form, how many were cut, and the bad rows."""
    problems: list[str] = []
    sides: dict[str, dict[PromptForm, Documents]] = {}
    truncated = 0
    for side in records[0].sides:
        builders: dict[PromptForm, DocumentsBuilder] = {form: DocumentsBuilder() for form in renderer.forms}
        for start in range(0, len(records), CHUNK):
            good, cut, bad = _render(renderer, side, records[start : start + CHUNK])
            truncated += cut
            problems += bad
            for form, builder in builders.items():
                builder.extend(forms[form] for forms in good)
        sides[side] = {form: builder.build() for form, builder in builders.items()}
    return sides, truncated, problems


def _render(renderer: Renderer, side: str, chunk: Sequence[Record]) -> tuple[list[Forms], int, list[str]]:
    outcomes = renderer.render([(record.sides[side], record.spans) for record in chunk])
    where = f"{side}: " if side else ""
    bad = [
        f"{record.source}: {where}{outcome}"
        for record, outcome in zip(chunk, outcomes, strict=True)
        if isinstance(outcome, RowError)
    ]
    good = [outcome for outcome in outcomes if not isinstance(outcome, RowError)]
    return good, sum(forms[renderer.primary].is_cut for forms in good), bad
