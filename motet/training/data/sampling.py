"""Which rows a step reads: a pure function of the seed and the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


def parts_of(count: int, size: int, least: int = 1) -> int:
    """Into how many even parts `count` rows go: none over `size`, but rather that than one under `least`."""
    return max(1, min(-(-count // size), count // least))


def part_of(count: int, part: int, parts: int) -> tuple[int, int]:
    """Where one of a number of even parts of `count` rows begins and ends; they differ by one row at the most."""
    return count * part // parts, count * (part + 1) // parts


class RowSource:
    """One dataset's rows: every epoch all of them once, in a new order; a step may span two epochs."""

    def __init__(
        self,
        dataset: TokenDataset,
        batching: Batching,
        rows: int,
        seed: int,
        *,
        shuffle: bool,
        epochs: float | None = None,
        least: int = 1,
        together: int = 1,
    ) -> None:
        """
        Args:
            rows: rows per step, over all micro-batches; a small dataset has fewer, each of them once.
            shuffle: a new order each epoch, else that of the files.
            epochs: what all steps together read, neither more nor less; None: as many rows as the steps take.
            least: rows per step that there must be, some of them twice where the dataset has fewer.
            together: rows that no step is to have fewer of, as far as the dataset has as many.
        """
        self._dataset, self._seed, self._shuffle = dataset, seed, shuffle
        self._rows = lay_out(dataset, batching, seed, shuffle=shuffle)
        self.per_step = max(min(rows, len(self._rows)), least)
        self._together = min(together, len(self._rows))
        self._total = None if epochs is None else max(self._together, round(epochs * len(self._rows)))
        self._order = lru_cache(2)(self._new_order)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def steps(self) -> int | None:
        """Steps that read what `epochs` says; None where it says nothing."""
        return None if self._total is None else parts_of(self._total, self.per_step, self._together)

    def bounds(self, step: int) -> tuple[int, int]:
        """The rows of a step, counted over all epochs. Steps that must come out even are even parts."""
        if self._total is None or self.steps is None or step >= self.steps:
            return step * self.per_step, (step + 1) * self.per_step
        return part_of(self._total, step, self.steps)

    def epochs(self, steps: int) -> float:
        """How often so many steps read every row."""
        return self.bounds(steps - 1)[1] / len(self._rows)

    def rows(self, step: int, micro: int = 0, micros: int = 1) -> list[Row]:
        """The rows of one of a step's micro-batches."""
        start, stop = self.bounds(step)
        first, last = part_of(stop - start, micro, micros)
        return [self._row(start + place) for place in range(first, last)]

    def _row(self, place: int) -> Row:
        epoch, position = divmod(place, len(self._rows))
        return self._rows[self._order(epoch)[position]]

    def _new_order(self, epoch: int) -> list[int]:
        count = len(self._rows)
        return permutation(self._seed, self._dataset.name, epoch, count) if self._shuffle else list(range(count))

    def batches(self, step: int, micro: int, micros: int, pad_id: int) -> dict[str, Batch]:
        """One batch per side, under NAME or NAME.side."""
        return batches_of(self._dataset, self.rows(step, micro, micros), pad_id)


def batches_of(dataset: TokenDataset, rows: Sequence[Row], pad_id: int) -> dict[str, Batch]:
    """Rows of a dataset as one batch per side, under NAME or NAME.side."""
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
        self._pad_id, self._accumulate = pad_id, batching.accumulate
        self.least = recipe.objective.least_documents
        known = [name for name in recipe.objective.datasets if name in datasets]
        self.leading = known[0] if known else next(iter(datasets))
        self.sources = {
            name: RowSource(
                dataset,
                batching,
                rows[name],
                recipe.seed,
                shuffle=recipe.data[name].shuffle,
                epochs=recipe.schedule.epochs if name == self.leading else None,
                least=1 if name == self.leading else batching.accumulate,
                together=self.least if name == self.leading else 1,
            )
            for name, dataset in datasets.items()
        }

    @property
    def steps(self) -> int | None:
        """What the schedule's epochs come to, over the objective's first dataset (that which is to be forgotten, say);
        the others keep their own epochs. None where the schedule gives steps."""
        return self.sources[self.leading].steps

    def micro_batches(self, step: int) -> int:
        """The recipe's number, less where a step has too few rows for as many losses."""
        start, stop = self.sources[self.leading].bounds(step)
        return max(1, min(self._accumulate, (stop - start) // self.least))

    def at(self, step: int, micro: int = 0) -> StepData:
        """The batches of one micro-batch of a step, both counted from 0."""
        micros = self.micro_batches(step)
        return {
            key: batch
            for source in self.sources.values()
            for key, batch in source.batches(step, micro, micros, self._pad_id).items()
        }
