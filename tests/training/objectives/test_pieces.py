"""Documents taken out of batches and laid into new ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.training.batch import Batch
from motet.training.objectives.pieces import batch_of, conditioned, mismatched, pieces_of
from motet.training.policy import ClassPrompts
from tests.training.batches import Document, make_batch


@st.composite
def documents(draw: st.DrawFn, least: int = 1) -> list[Document]:
    found: list[Document] = []
    for _ in range(draw(st.integers(least, 5))):
        length = draw(st.integers(2, 6))
        start = draw(st.integers(1, length - 1))
        ids = draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))
        weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=length - start, max_size=length - start))
        found.append(Document(ids, start, weights))
    return found


def same(one: Batch, other: Batch) -> None:
    for name in ("input_ids", "positions", "documents", "counted", "targets", "weights", "owners"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.num_documents == other.num_documents


@given(documents())
@settings(deadline=None, max_examples=30)
def test_a_batch_is_the_sum_of_its_pieces(some: list[Document]) -> None:
    packed, alone = make_batch([some]), make_batch([[one] for one in some])
    same(batch_of(pieces_of(packed), packed), alone)


@given(documents(least=2))
@settings(deadline=None, max_examples=30)
def test_mismatched_answers(some: list[Document]) -> None:
    crossed: list[list[Document]] = []
    for number, one in enumerate(some):
        before = some[number - 1]
        ids = [*one.ids[: one.start], *before.ids[before.start :]]
        crossed.append([Document(ids, one.start, before.weights)])
    same(mismatched(make_batch([some])), make_batch(crossed))


def test_one_document_has_no_other() -> None:
    with pytest.raises(ValueError, match="two documents"):
        mismatched(make_batch([[Document([1, 2])]]))


def test_views_are_mismatched_alike() -> None:
    rows = [Document([1, 2, 3], 1), Document([4, 5, 6, 7], 2)]
    longer = [Document([9, 9, *one.ids], one.start + 2) for one in rows]
    crossed = mismatched(replace(make_batch([rows]), views={"chat": make_batch([longer])}))
    assert torch.equal(crossed.views["chat"].targets, crossed.targets)
    assert crossed.views["chat"].input_ids[0, :5].tolist() == [9, 9, 1, 6, 7]


@given(documents(), st.integers(0, 1), st.lists(st.integers(10, 12), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_class_prompts_stand_behind_the_bos_and_change_no_target(
    some: list[Document], at: int, code: list[int]
) -> None:
    prompts = ClassPrompts(((99,), tuple(code)), at)
    led = [[Document([*one.ids[:at], *code, *one.ids[at:]], one.start + len(code), one.weights)] for one in some]
    same(conditioned(make_batch([some]), prompts, 1), make_batch(led))
