"""A teacher's most likely tokens, computed once and kept on disk."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from motet.experts.fingerprints import content_hash, file_hash
from motet.training.batch import Batch
from motet.training.policy import Policy, TopTokens

if TYPE_CHECKING:
    from motet.training.data.dataset import TokenDataset

MANIFEST = "teacher.json"
SHARD_TARGETS = 1 << 16  # targets per shard, about


class TeacherError(Exception):
    """Stored distributions are damaged, of something else, or do not fit the batch."""


def top_tokens(logits: Tensor, k: int) -> TopTokens:
    """The k most likely tokens of (N, V) logits (all V where k is more), and the log of the others' mass."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(min(k, logits.shape[-1]), dim=-1)
    if k >= logits.shape[-1]:
        return TopTokens(top.indices, top.values, top.values.new_full((len(logits),), -math.inf))
    return TopTokens(top.indices, top.values, logprobs.scatter(-1, top.indices, -math.inf).logsumexp(-1))


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher that is computed at every step."""

    policy: Policy
    k: int

    def __call__(self, batch: Batch) -> TopTokens:
        with torch.no_grad():
            return top_tokens(self.policy(batch), self.k)


class StoredTeacher:
    """Stored top tokens, looked up by `Batch.indices`; files are memory-mapped.

    Args:
        folder: written by `store_teacher`.
        key: what they must have been stored for.

    Raises:
        TeacherError: another key, a missing or damaged file.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._manifest = _read_manifest(folder, key)
        for name, digest in self._manifest["shards"].items():
            path = folder / name
            if not path.is_file() or file_hash(path) != digest:
                raise TeacherError(f"{path}: missing or damaged; delete {folder} to compute the teacher anew")
        self._places: list[list[int]] = self._manifest["documents"]  # (shard, start, count) by index

    @cached_property
    def _shards(self) -> list[Any]:
        try:
            return [safe_open(self.folder / name, framework="pt") for name in self._manifest["shards"]]
        except (OSError, SafetensorError) as error:
            raise TeacherError(f"{self.folder}: {error}") from error

    def __call__(self, batch: Batch) -> TopTokens:
        """Top tokens (N, k) at the batch's targets.

        Raises:
            TeacherError: a document has not the targets that were stored.
        """
        assert batch.indices is not None, "batches name their records"
        parts = [self._document(index, count) for index, count in _targets_by_index(batch, batch.indices)]
        device = batch.input_ids.device
        ids, logprobs, rest = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
        return TopTokens(ids.long(), logprobs, rest)

    def _document(self, index: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        shard, start, stored = self._places[index]
        if stored != count:
            raise TeacherError(f"document {index} has {count} targets, {stored} are stored: documents must be whole")
        source = self._shards[shard]
        ids, logprobs, rest = (source.get_slice(name)[start : start + count] for name in ("ids", "logprobs", "rest"))
        return ids, logprobs, rest


def teacher_key(**parts: object) -> str:
    """SHA-256 in hex of whatever decides a teacher's distributions: models, composition, data, k, dtype."""
    return content_hash(parts)


def store_teacher(
    policy: Policy,
    batches: Iterable[Batch],
    folder: Path,
    key: str,
    k: int,
    report: Callable[[int], None] | None = None,
) -> StoredTeacher:
    """Computes top tokens of whole documents and writes them; they appear in `folder` when all are there.

    Args:
        batches: every document once; `indices` from 0, without gaps.
        report: is given the number of documents done.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        writer = _Writer(aside)
        live = LiveTeacher(policy, k)
        for batch in batches:
            writer.add(batch, live(batch))
            if report is not None:
                report(len(writer.documents))
        writer.close(key, k)
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return StoredTeacher(folder, key)


def load_or_store(
    policy: Policy,
    batches: Iterable[Batch],
    folder: Path,
    key: str,
    k: int,
    report: Callable[[int], None] | None = None,
) -> StoredTeacher:
    """What is stored in `folder` for this key, or computed and stored now.

    Raises:
        TeacherError: what is stored is damaged.
        OSError: the folder cannot be written.
    """
    if (folder / MANIFEST).is_file():
        return StoredTeacher(folder, key)
    return store_teacher(policy, batches, folder, key, k, report)


def whole_batches(dataset: TokenDataset, pad_id: int, rows: int = 32) -> Iterator[Batch]:
    """Every document of a dataset once, in rows of their own, those of similar lengths together."""
    from motet.training.data.collate import collate
    from motet.training.data.packing import one_per_row

    order = cast("list[int]", np.argsort(dataset.lengths, kind="stable").tolist())
    all_rows = one_per_row(len(dataset))
    forms = dataset.sides[""]
    for start in range(0, len(order), rows):
        chosen = [all_rows[index] for index in order[start : start + rows]]
        yield collate(forms, dataset.primary, dataset.views, chosen, pad_id, dataset.labels)


class _Writer:
    """Shards of about `SHARD_TARGETS` targets, and where each document lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents: dict[int, tuple[int, int, int]] = {}
        self.shards: dict[str, str] = {}
        self._parts: list[TopTokens] = []
        self._filled = 0

    def add(self, batch: Batch, top: TopTokens) -> None:
        assert batch.indices is not None, "batches name their records"
        for index, count in _targets_by_index(batch, batch.indices):
            self.documents[index] = (len(self.shards), self._filled, count)
            self._filled += count
        self._parts.append(top)
        if self._filled >= SHARD_TARGETS:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        path = self.folder / f"top-{len(self.shards):05d}.safetensors"
        columns = {
            "ids": _joined([part.ids for part in self._parts]).int(),
            "logprobs": _joined([part.logprobs for part in self._parts]).float(),
            "rest": _joined([part.rest for part in self._parts]).float(),
        }
        safetensors.save_file(columns, path)
        self.shards[path.name] = file_hash(path)
        self._parts, self._filled = [], 0

    def close(self, key: str, k: int) -> None:
        self._flush()
        places = [self.documents[index] for index in range(len(self.documents))]
        manifest = {"key": key, "k": k, "shards": self.shards, "documents": places}
        (self.folder / MANIFEST).write_text(json.dumps(manifest))


def _targets_by_index(batch: Batch, indices: Tensor) -> list[tuple[int, int]]:
    """(index in the dataset, number of targets) of each document."""
    counts = torch.bincount(batch.owners, minlength=batch.num_documents)
    pairs = cast("list[list[int]]", torch.stack((indices, counts), -1).tolist())
    return [(index, count) for index, count in pairs]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts]).contiguous()


def _read_manifest(folder: Path, key: str) -> Mapping[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: Mapping[str, Any] = json.loads(path.read_text())
        stored: object = manifest["key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(f"{path}: cannot be read ({error}); delete {folder} to compute the teacher anew") from error
    if stored != key:
        raise TeacherError(f"{folder}: stored for another teacher, data or k; delete it to compute the teacher anew")
    return manifest
