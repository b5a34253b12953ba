"""Records' labels as class indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from motet.training.data.records import Label, Record
from motet.training.objectives.objective import RecordKind

Labels = tuple[NDArray[np.int64] | None, tuple[Label, ...], list[str]]


def label_indices(name: str, kind: RecordKind, records: Sequence[Record]) -> Labels:
    """The index of each record's label, the classes in sorted order (False before True), and what is wrong."""
    labels = [record.label for record in records if record.label is not None]
    if kind not in ("labelled", "classes", "clusters") or len(labels) != len(records):
        return None, (), []
    if kind == "classes" and len({type(label) for label in labels}) > 1:
        odd = next(record for record in records if type(record.label) is not type(labels[0]))
        return None, (), [f"{odd.source}: label: {odd.label!r} is no {type(labels[0]).__name__} as the labels before"]
    classes = (False, True) if kind == "labelled" else tuple(sorted(set(labels)))
    if kind == "classes" and len(set(labels)) < 2:
        return None, (), [f"data.{name}: all labels are {labels[0]!r}; two at least are needed"]
    index = {label: position for position, label in enumerate(classes)}
    return np.array([index[label] for label in labels], np.int64), classes, []
