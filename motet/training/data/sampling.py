"""Which rows a step reads: a pure function of the seed and the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import torch

from motet.training.batch import Batch, StepData
from motet.training.data.collate import collate
from motet.training.data.dataset import TokenDataset
from motet.training.data.errors import DataError
from motet.training.data.packing import Row, one_per_row, pack_fit, pack_wrap, with_targets
from motet.training.recipe import Batching, Recipe


def permutation(seed: int, name: str, epoch: int, count: int) -> list[int]:
    """A random order of `count` items: the same for the same seed, name and epoch, on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return cast("list[int]", torch.randperm(count, generator=generator).tolist())


class RowSource:
    """One dataset's rows: every epoch all of them once, in a new order; a step may span two epochs."""

    def __init__(self, dataset: TokenDataset, batching: Batching, rows: int, seed: int, *, shuffle: bool) -> None:
        """
        Args:
            rows: rows per step, over all micro-batches.
            shuffle: a new order each epoch, else that of the files.
        """
        self._dataset, self._seed, self._shuffle = dataset, seed, shuffle
        self._per_step, self._micros = rows, batching.accumulate
        self._rows = lay_out(dataset, batching, seed, shuffle=shuffle)
        self._order = lru_cache(2)(self._new_order)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every row was read, rounded up."""
        return -(-len(self._rows) // self._per_step)

    def rows(self, step: int, micro: int = 0) -> list[Row]:
        """The rows of one micro-batch."""
        first, last = (self._per_step * part // self._micros for part in (micro, micro + 1))
        start = step * self._per_step
        return [self._row(place) for place in range(start + first, start + last)]

    def _row(self, place: int) -> Row:
        epoch, position = divmod(place, len(self._rows))
        return self._rows[self._order(epoch)[position]]

    def _new_order(self, epoch: int) -> list[int]:
        count = len(self._rows)
        return permutation(self._seed, self._dataset.name, epoch, count) if self._shuffle else list(range(count))

    def batches(self, step: int, micro: int, pad_id: int) -> dict[str, Batch]:
        """One batch per side, under NAME or NAME.side."""
        dataset, rows = self._dataset, self.rows(step, micro)
        return {
            f"{dataset.name}.{side}" if side else dataset.name: collate(
                forms, dataset.primary, dataset.views, rows, pad_id, dataset.labels
            )
            for side, forms in dataset.sides.items()
        }


def lay_out(dataset: TokenDataset, batching: Batching, seed: int, *, shuffle: bool) -> list[Row]:
    """The dataset's rows, the same ones in every epoch; sides and forms of a record stand in the same rows."""
    count = len(dataset)
    order = permutation(seed, f"{dataset.name}/packing", 0, count) if shuffle else list(range(count))
    match batching.packing:
        case "none":
            return one_per_row(count)
        case "fit":
            return pack_fit(dataset.lengths, order, batching.max_length)
        case "wrap":
            rows = pack_wrap(dataset.lengths, order, batching.max_length)
            documents = dataset.sides[""][dataset.primary]
            return with_targets(rows, documents.counted, documents.starts)


class BatchSource:
    """What every step reads."""

    def __init__(self, datasets: Mapping[str, TokenDataset], recipe: Recipe, pad_id: int) -> None:
        """
        Args:
            datasets: by their names in the recipe's `data`.
            pad_id: the token that fills rows up.

        Raises:
            DataError: a dataset has fewer rows per step than there are micro-batches.
        """
        batching = recipe.batch
        rows = {name: recipe.data[name].rows or batching.rows for name in datasets}
        problems = [
            f"batch.accumulate: {batching.accumulate} micro-batches of {count} rows of data.{name}; "
            f"allowed: 1 to {count}"
            for name, count in rows.items()
            if count < batching.accumulate
        ]
        if problems:
            raise DataError(problems)
        self._pad_id = pad_id
        self.sources = {
            name: RowSource(dataset, batching, rows[name], recipe.seed, shuffle=recipe.data[name].shuffle)
            for name, dataset in datasets.items()
        }
        known = [name for name in recipe.objective.datasets if name in datasets]
        self._leading = self.sources[known[0] if known else next(iter(datasets))]

    @property
    def steps_per_epoch(self) -> int:
        """Of the objective's first dataset (that which is to be forgotten, say); the others keep their own epochs."""
        return self._leading.steps_per_epoch

    def at(self, step: int, micro: int = 0) -> StepData:
        """The batches of one micro-batch of a step, both counted from 0."""
        return {
            key: batch
            for source in self.sources.values()
            for key, batch in source.batches(step, micro, self._pad_id).items()
        }
