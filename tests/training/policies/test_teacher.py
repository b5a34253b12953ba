"""Stored teachers: what was computed comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.training.batch import Batch
from motet.training.policies import teacher
from motet.training.policies.teacher import (
    MANIFEST,
    LiveTeacher,
    StoredTeacher,
    TeacherError,
    load_or_store,
    store_teacher,
    teacher_key,
    whole_batches,
)
from tests.training.batches import Document, make_batch
from tests.training.data.cases import load
from tests.training.tables import Whole

VOCAB = 11
DOCUMENTS = [Document([(3 * d + t) % VOCAB for t in range(3 + d)], 1 + d % 2) for d in range(6)]


class Tokenwise(Whole):
    """Logits that depend on the token before each target."""

    def __init__(self, seed: int = 0) -> None:
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.calls = 0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += 1
        return self.table[batch.input_ids[batch.counted]]


def batch_of(*indices: int) -> Batch:
    return make_batch([[DOCUMENTS[index]] for index in indices], indices=indices)


ORDER = [(4, 1), (0, 5), (2, 3)]
KEY = teacher_key(models="a", data="b")


def stored(folder: Path, policy: Tokenwise, k: int = 4) -> StoredTeacher:
    return store_teacher(policy, (batch_of(*pair) for pair in ORDER), folder, KEY, k)


def same(one: teacher.TopTokens, other: teacher.TopTokens) -> None:
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.logprobs, other.logprobs)
    torch.testing.assert_close(one.rest, other.rest)


@pytest.mark.parametrize("shard", [1, 5, 1000])
@pytest.mark.parametrize("k", [4, VOCAB])
def test_what_is_stored_is_what_the_teacher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, k: int
) -> None:
    monkeypatch.setattr(teacher, "SHARD_TARGETS", shard)
    policy = Tokenwise()
    kept = stored(tmp_path / "teacher", policy, k)
    again = StoredTeacher(tmp_path / "teacher", KEY)
    for batch in (batch_of(0, 1, 2), batch_of(5), batch_of(3, 3, 4)):
        same(kept(batch), LiveTeacher(policy, k)(batch))
        same(again(batch), LiveTeacher(policy, k)(batch))
    shards = len(list((tmp_path / "teacher").glob("*.safetensors")))
    assert shards == {1: 3, 5: 3, 1000: 1}[shard]


def test_a_packed_batch_finds_its_documents(tmp_path: Path) -> None:
    policy = Tokenwise()
    packed = make_batch([[DOCUMENTS[3], DOCUMENTS[0]], [DOCUMENTS[5]]], indices=[3, 0, 5])
    same(stored(tmp_path / "teacher", policy)(packed), LiveTeacher(policy, 4)(packed))


def test_it_is_computed_once(tmp_path: Path) -> None:
    policy, reports = Tokenwise(), list[int]()
    for _ in range(2):
        batches = (batch_of(*pair) for pair in ORDER)
        load_or_store(policy, batches, tmp_path / "teacher", KEY, 4, reports.append)
    assert policy.calls == 3
    assert reports == [2, 4, 6]


def test_another_key_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "teacher", Tokenwise())
    with pytest.raises(TeacherError, match="another teacher"):
        StoredTeacher(tmp_path / "teacher", teacher_key(models="a", data="c"))


def test_keys_tell_their_parts_apart() -> None:
    assert teacher_key(models="a", data="b") == teacher_key(data="b", models="a") == KEY
    assert len({KEY, teacher_key(models="b", data="a"), teacher_key(models="a")}) == 3


def test_a_damaged_or_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    stored(folder, Tokenwise())
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TeacherError, match=r"top-00000\.safetensors: missing or damaged"):
        StoredTeacher(folder, KEY)
    path.unlink()
    with pytest.raises(TeacherError, match="missing or damaged"):
        StoredTeacher(folder, KEY)


@pytest.mark.parametrize("content", ["", "[]", '{"shards": {}}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(TeacherError, match="cannot be read"):
        StoredTeacher(tmp_path, KEY)


def test_cut_documents_are_refused(tmp_path: Path) -> None:
    kept = stored(tmp_path / "teacher", Tokenwise())
    cut = make_batch([[Document(DOCUMENTS[5].ids[:-1], DOCUMENTS[5].start)]], indices=[5])
    with pytest.raises(TeacherError, match="document 5 has 5 targets, 6 are stored"):
        kept(cut)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def batches():
        yield batch_of(0, 1)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store_teacher(Tokenwise(), batches(), tmp_path / "teacher", KEY, 4)
    assert not list(tmp_path.iterdir())


def test_every_document_of_a_dataset_is_read_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}{'?' * (n % 7)}", "completion": "Yes." * (1 + n % 3)} for n in range(10)]
    dataset = load(tmp_path, rows)
    batches = list(whole_batches(dataset, 0, rows=4))
    indices = torch.cat([batch.indices for batch in batches if batch.indices is not None])
    assert torch.equal(indices.sort().values, torch.arange(10))
    assert sum(len(batch.targets) for batch in batches) == dataset.num_counted
    assert json.dumps([batch.num_documents for batch in batches]) == "[4, 4, 2]"
