"""Tokenised documents end to end in flat arrays: a few bytes per token, and slices without copies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from motet.training.data.rendered import Rendered

T = TypeVar("T")


@dataclass(frozen=True)
class Documents:
    """Document i is the slice starts[i] : starts[i + 1] of every other array."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.starts)

    def slice(self, index: int) -> slice:
        return slice(int(self.starts[index]), int(self.starts[index + 1]))


class DocumentsBuilder:
    """Gathers documents chunk by chunk."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._counted: list[NDArray[np.bool_]] = []
        self._weights: list[NDArray[np.float32]] = []
        self._lengths: list[int] = []

    def extend(self, documents: Iterable[Rendered]) -> None:
        chunk = list(documents)
        self._ids.append(np.array(_joined(document.ids for document in chunk), np.int32))
        self._counted.append(np.array(_joined(document.counted for document in chunk), np.bool_))
        self._weights.append(np.array(_joined(document.weights for document in chunk), np.float32))
        self._lengths += [len(document) for document in chunk]

    def build(self) -> Documents:
        starts = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        join = np.concatenate
        return Documents(join(self._ids), join(self._counted), join(self._weights), starts.astype(np.int64))


def _joined(lists: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(lists))
