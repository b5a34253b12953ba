"""No token is lost or read twice, whatever the lengths."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.training.batch import Batch, PromptForm
from motet.training.data.collate import collate
from motet.training.data.documents import Documents, DocumentsBuilder
from motet.training.data.packing import Piece, Row, one_per_row, pack_fit, pack_wrap, with_targets
from motet.training.data.rendered import Rendered
from motet.training.data.sampling import lay_out
from tests.training.data.cases import load, recipe

LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=30)
PAD = -5


def documents(lengths: list[int], shift: int = 0, masked: int = 0) -> Documents:
    """Documents of distinct tokens, the first one and `masked` others uncounted; `shift` more tokens in front."""
    builder = DocumentsBuilder()
    for number, length in enumerate(lengths):
        ids = [*range(shift), *(1000 * (number + 1) + t for t in range(length))]
        start = shift + 1 + min(masked, length - 2) if shift == 0 else shift
        counted = [t >= start for t in range(len(ids))]
        builder.extend([Rendered(ids, counted, [float(t - shift + 1) for t in range(len(ids))])])
    return builder.build()


def batch_of(found: Documents, rows: list[Row]) -> Batch:
    return collate({"plain": found}, "plain", (), rows, PAD)


def check(batch: Batch) -> None:
    """What `Batch` promises of positions, documents, targets, weights and owners."""
    b, t = torch.nonzero(batch.counted, as_tuple=True)
    assert torch.equal(batch.targets, batch.input_ids[b, t + 1])
    assert torch.equal(batch.owners, batch.documents[b, t])
    assert torch.equal(batch.documents[b, t], batch.documents[b, t + 1]), "a target lies in its position's document"
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] >= 0)
    assert torch.equal(batch.positions[:, 1:], torch.where(same, batch.positions[:, :-1] + 1, 0))
    assert not batch.positions[:, 0].any()
    assert torch.equal(batch.input_ids == PAD, batch.documents == -1)
    assert int(batch.documents.max()) + 1 == batch.num_documents


def targets(batch: Batch) -> list[tuple[int, float]]:
    pairs = zip(cast("list[int]", batch.targets.tolist()), cast("list[float]", batch.weights.tolist()), strict=True)
    return sorted(pairs)


@given(LENGTHS, st.integers(20, 40), st.integers(0, 3))
def test_fit_keeps_every_document_whole_and_once(lengths: list[int], capacity: int, masked: int) -> None:
    found = documents(lengths, masked=masked)
    rows = pack_fit(found.lengths, range(len(lengths)), capacity)
    assert sorted(piece.index for row in rows for piece in row) == list(range(len(lengths)))
    assert all(sum(lengths[piece.index] for piece in row) <= capacity for row in rows)
    batch = batch_of(found, rows)
    check(batch)
    assert batch.num_tokens == sum(lengths)
    assert torch.equal(batch.weights, batch.targets % 1000 + 1.0), "the weight is the target's own"
    assert targets(batch) == targets(batch_of(found, one_per_row(len(lengths))))


@given(LENGTHS, st.integers(20, 40))
def test_fit_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    """Against the rule as it is written down: the longest first, each into the fullest row that has room."""
    expected: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rooms = [capacity - sum(lengths[i] for i in row) for row in expected]
        fitting = [room for room in rooms if room >= lengths[index]]
        if fitting:
            expected[len(rooms) - 1 - rooms[::-1].index(min(fitting))].append(index)
        else:
            expected.append([index])
    rows = pack_fit(np.array(lengths), range(len(lengths)), capacity)
    assert sorted(sum(lengths[p.index] for p in row) for row in rows) == sorted(
        sum(lengths[i] for i in row) for row in expected
    )


@given(LENGTHS, st.integers(2, 25), st.integers(0, 15))
def test_wrap_predicts_every_target_once(lengths: list[int], capacity: int, masked: int) -> None:
    found = documents(lengths, masked=masked)
    order = list(range(len(lengths)))[::-1]
    rows = with_targets(pack_wrap(found.lengths, order, capacity), found.counted, found.starts)
    batch = batch_of(found, rows)
    check(batch)
    assert batch.input_ids.shape[1] <= capacity
    assert batch.counted.any(1).all(), "no row without targets"
    assert torch.equal(batch.weights, batch.targets % 1000 + 1.0)
    assert targets(batch) == targets(batch_of(found, one_per_row(len(lengths))))


def test_pieces_without_targets_are_left_out() -> None:
    """The token that a piece repeats as its context is the target of the piece before."""
    counted = np.array([False, False, True, False, False, False, True])
    rows = [(Piece(0, 0, 3), Piece(0, 2, 5)), (Piece(0, 2, 5),), (Piece(0, 4),)]
    assert with_targets(rows, counted, np.array([0, 7])) == [(Piece(0, 0, 3),), (Piece(0, 4),)]


def test_wrap_fills_rows_and_repeats_only_the_token_before_a_cut() -> None:
    rows = pack_wrap(np.array([5, 4, 3]), [0, 1, 2], 6)
    assert rows == [(Piece(0, 0, 5),), (Piece(1, 0, 4), Piece(2, 0, 2)), (Piece(2, 1, 3),)]


@given(LENGTHS, st.integers(1, 9), st.booleans())
def test_views_are_aligned_in_packed_rows(lengths: list[int], shift: int, packed: bool) -> None:
    """Another form has longer prompts, other rows' widths, and the same targets in the same order."""
    forms: dict[PromptForm, Documents] = {"none": documents(lengths), "plain": documents(lengths, shift)}
    trimmed = Documents(forms["plain"].ids, _without_firsts(forms["plain"], shift), forms["plain"].weights,
                        forms["plain"].starts)  # fmt: skip
    forms["plain"] = trimmed
    longest = trimmed.lengths
    rows = pack_fit(longest, range(len(lengths)), 30) if packed else one_per_row(len(lengths))
    batch = collate(forms, "none", ("none", "plain"), rows, PAD)
    for view in batch.views.values():
        check(view)
        assert torch.equal(view.targets, batch.targets)
        assert torch.equal(view.weights, batch.weights)
        assert torch.equal(view.owners, batch.owners)


def _without_firsts(found: Documents, shift: int) -> np.typing.NDArray[np.bool_]:
    counted = found.counted.copy()
    counted[found.starts[:-1] + shift] = False
    return counted


@settings(max_examples=20)
@given(st.permutations(list(range(8))))
def test_fit_is_deterministic_and_breaks_ties_by_the_given_order(order: list[int]) -> None:
    rows = pack_fit(np.full(8, 5), order, 10)
    assert [piece.index for row in rows for piece in row] == order


def test_pairs_stand_in_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "q" * n, "chosen": "c" * (9 - n), "rejected": "r" * (2 * n)} for n in range(1, 9)]
    dataset = load(tmp_path, rows, "pairs", batch={"packing": "fit", "max_length": 80})
    laid = lay_out(dataset, recipe(batch={"packing": "fit", "max_length": 80}).batch, 0, shuffle=True)
    assert len(laid) < len(rows)
    chosen, rejected = (collate(dataset.sides[side], "chat", (), laid, 0) for side in ("chosen", "rejected"))
    assert chosen.indices is not None
    assert rejected.indices is not None
    assert torch.equal(chosen.indices, rejected.indices)
    assert max(chosen.input_ids.shape[1], rejected.input_ids.shape[1]) <= 80


@pytest.mark.parametrize("packing", ["none", "fit", "wrap"])
def test_a_dataset_has_the_same_targets_however_it_is_laid_out(tmp_path: Path, packing: str) -> None:
    rows = [{"text": chr(97 + n) * (3 * n + 2)} for n in range(12)]
    batching = recipe(batch={"packing": packing, "max_length": 40}).batch
    dataset = load(tmp_path, rows, batch=batching.model_dump())
    batch = collate(dataset.sides[""], "plain", (), lay_out(dataset, batching, 3, shuffle=True), PAD)
    check(batch)
    assert len(batch.targets) == dataset.num_counted == sum(3 * n + 2 for n in range(12))
