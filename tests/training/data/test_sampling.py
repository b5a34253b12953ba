"""A step's rows follow from the seed and the step alone; every epoch has every record once."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.training.batch import Batch
from motet.training.data.dataset import TokenDataset
from motet.training.data.errors import DataError
from motet.training.data.sampling import BatchSource, permutation
from motet.training.recipe import Recipe, Scheduling
from tests.training.data.cases import load, recipe


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": f"number {n}"} for n in range(count)]


def of_epochs(epochs: float, batch: dict[str, int], count: int, folder: Path) -> BatchSource:
    setting = recipe(batch=batch).model_copy(update={"schedule": Scheduling(epochs=epochs)})
    return source(load(folder, texts(count)), setting)


def source(dataset: TokenDataset, setting: Recipe) -> BatchSource:
    return BatchSource({"train": dataset}, setting, pad_id=0)


def indices(batch: Batch) -> list[int]:
    assert batch.indices is not None
    return cast("list[int]", batch.indices.tolist())


def read(batches: BatchSource, steps: int, micros: int = 1) -> list[int]:
    return [i for step in range(steps) for micro in range(micros) for i in indices(batches.at(step, micro)["train"])]


@pytest.mark.parametrize("micros", [1, 3])
@pytest.mark.parametrize("count", [3, 7, 16])
def test_every_record_once_per_epoch(tmp_path: Path, count: int, micros: int) -> None:
    batches = source(load(tmp_path, texts(count)), recipe(batch={"rows": 5, "accumulate": micros}))
    order = read(batches, 2 * count, micros)
    epochs = [order[start : start + count] for start in range(0, 5 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 7 or len({tuple(epoch) for epoch in epochs}) == 5, "a new order in every epoch"


@given(count=st.integers(1, 40), rows=st.integers(1, 16), epochs=st.floats(0.05, 4), accumulate=st.integers(1, 8))
def test_epochs_are_read_exactly(count: int, rows: int, epochs: float, accumulate: int) -> None:
    """No row more often than `epochs` says, no step larger than the batch or the data, no micro-batch empty."""
    rows = max(rows, accumulate)
    with TemporaryDirectory() as folder:
        batches = of_epochs(epochs, {"rows": rows, "accumulate": accumulate}, count, Path(folder))
    steps = batches.steps
    assert steps is not None
    sizes = [
        [len(indices(batches.at(step, micro)["train"])) for micro in range(batches.micro_batches(step))]
        for step in range(steps)
    ]
    whole = [sum(micros) for micros in sizes]
    assert sum(whole) == max(1, round(epochs * count))
    assert max(whole) <= min(rows, count)
    assert max(whole) - min(whole) <= 1
    assert all(min(micros) > 0 and max(micros) <= -(-rows // accumulate) for micros in sizes)
    seen = [i for step in range(steps) for m in range(len(sizes[step])) for i in indices(batches.at(step, m)["train"])]
    assert max(map(seen.count, seen)) <= math.ceil(epochs)


@given(count=st.integers(2, 40), rows=st.integers(2, 16), epochs=st.floats(0.05, 4), accumulate=st.integers(1, 8))
def test_every_micro_batch_has_as_many_rows_as_the_loss_needs(
    count: int, rows: int, epochs: float, accumulate: int
) -> None:
    kto = {"objective": {"type": "kto"}, "schedule": {"epochs": epochs}}
    setting = recipe(batch={"rows": max(rows, 2 * accumulate), "accumulate": accumulate}).model_dump() | kto
    with TemporaryDirectory() as folder:
        batches = source(load(Path(folder), texts(count)), Recipe.model_validate(setting))
    assert batches.steps is not None
    for step in range(batches.steps):
        micros = batches.micro_batches(step)
        assert min(len(indices(batches.at(step, micro)["train"])) for micro in range(micros)) >= 2
    assert batches.sources["train"].bounds(batches.steps - 1)[1] == max(2, round(epochs * count))


def test_small_data_are_not_copied_into_a_batch(tmp_path: Path) -> None:
    """Thirty records in one packed row were read sixteen times at every step."""
    batch = {"rows": 16, "max_length": 1024, "packing": "fit"}
    batches = source(load(tmp_path, texts(30), batch=batch), recipe(batch=batch))
    assert sorted(indices(batches.at(0)["train"])) == list(range(30))
    assert sorted(indices(batches.at(5)["train"])) == list(range(30))


def test_a_step_is_a_pure_function(tmp_path: Path) -> None:
    dataset = load(tmp_path, texts(11))
    forward = source(dataset, recipe(batch={"rows": 4}, seed=7))
    backward = source(dataset, recipe(batch={"rows": 4}, seed=7))
    other = source(dataset, recipe(batch={"rows": 4}, seed=8))
    one = [forward.at(step)["train"].input_ids for step in range(9)]
    two = [backward.at(step)["train"].input_ids for step in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert read(forward, 9) != read(other, 9)


def test_micro_batches_split_the_step(tmp_path: Path) -> None:
    dataset = load(tmp_path, texts(20))
    whole = source(dataset, recipe(batch={"rows": 8}))
    split = source(dataset, recipe(batch={"rows": 8, "accumulate": 3}))
    parts = [indices(split.at(1, micro)["train"]) for micro in range(3)]
    assert [len(part) for part in parts] == [2, 3, 3]
    assert [i for part in parts for i in part] == indices(whole.at(1)["train"])


def test_more_micro_batches_than_rows_are_refused(tmp_path: Path) -> None:
    dataset = load(tmp_path, texts(4))
    with pytest.raises(DataError, match=r"batch.accumulate: 3 micro-batches of 2 rows of data.train; allowed: 1 to 2"):
        source(dataset, recipe(rows=2, batch={"accumulate": 3}))


def test_without_shuffling_rows_come_as_in_the_files(tmp_path: Path) -> None:
    batches = source(load(tmp_path, texts(5)), recipe(shuffle=False, batch={"rows": 3}))
    assert read(batches, 4) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_a_small_second_dataset_fills_all_micro_batches(tmp_path: Path) -> None:
    setting = Recipe.model_validate(
        recipe(batch={"rows": 8, "accumulate": 4}).model_dump(exclude={"data"})
        | {"data": {"retain": {"files": ["x"]}, "train": {"files": ["x"]}}}
    )
    few, many = replace(load(tmp_path, texts(2)), name="retain"), load(tmp_path, texts(9))
    batches = BatchSource({"retain": few, "train": many}, setting, 0)
    assert [len(indices(batches.at(0, micro)["retain"])) for micro in range(4)] == [1] * 4
    assert [len(indices(batches.at(0, micro)["train"])) for micro in range(4)] == [2] * 4


def test_roles_keep_their_own_epochs(tmp_path: Path) -> None:
    """The first dataset of the objective sets the epoch; the others go on at their own pace."""
    setting = Recipe.model_validate(
        recipe().model_dump(exclude={"data"})
        | {"data": {"retain": {"files": ["x"], "rows": 3}, "train": {"files": ["x"], "rows": 2}}}
    )
    few, many = load(tmp_path, texts(4)), replace(load(tmp_path, texts(9)), name="retain")
    batches = BatchSource({"retain": many, "train": few}, setting, 0)
    assert sorted(i for step in range(2) for i in indices(batches.at(step)["train"])) == list(range(4))
    assert sorted(i for step in range(3) for i in indices(batches.at(step)["retain"])) == list(range(9))


def test_pairs_give_two_batches_and_labels_come_along(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(5)]
    step = source(load(tmp_path, pairs, "pairs"), recipe(batch={"rows": 3})).at(0)
    assert set(step) == {"train.chosen", "train.rejected"}
    assert indices(step["train.chosen"]) == indices(step["train.rejected"])
    rows = [{"text": "x" * (n + 1), "label": n % 3} for n in range(9)]
    batch = source(load(tmp_path, rows, "classes"), recipe(batch={"rows": 4, "packing": "fit"})).at(0)["train"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [i % 3 for i in indices(batch)]


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 40))
def test_permutations_depend_on_all_that_names_them(seed: int, epoch: int, count: int) -> None:
    order = permutation(seed, "forget", epoch, count)
    assert sorted(order) == list(range(count))
    assert order == permutation(seed, "forget", epoch, count)


def test_permutations_of_other_names_and_epochs_differ() -> None:
    keys = product((0, 1), ("forget", "retain"), (0, 1))
    orders = {tuple(permutation(seed, name, epoch, 30)) for seed, name, epoch in keys}
    assert len(orders) == 8
