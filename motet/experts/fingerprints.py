"""Short names for exact contents: tokenizers, weights, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from motet.composers import vocabulary
from motet.composers.vocabulary import ReadableTokenizer
from motet.models.files import ADAPTER_WEIGHTS, HEAD

SAMPLE = 1 << 15  # bytes of a tensor's beginning, and as many of its end


def fingerprint(tokenizer: ReadableTokenizer | str | Path) -> str:
    """A tokenizer's SHA-256 in hex over the exact token → id map, special tokens among them.

    Equal exactly where models can be composed. Which token ends a text may differ (see `composers.vocabulary`).

    Args:
        tokenizer: a transformers tokenizer, or the folder or hub id to load it from.

    Raises:
        OSError, ValueError: it cannot be loaded.
    """
    if isinstance(tokenizer, str | Path):
        from motet.models.checkpoint import read_tokenizer

        tokenizer = cast(ReadableTokenizer, read_tokenizer(str(tokenizer)))
    return vocabulary.fingerprint(tokenizer)


def weights_fingerprint(folder: Path) -> str | None:
    """A SHA-256 in hex that tells checkpoints apart in a moment, whatever their size.

    It covers every tensor's name, type and shape, and the first and last 32 KiB of its values: sharding does not
    change it, training does; a head beside the model is no part of it. `file_hash` is what proves that a file is
    whole. Checkpoints without safetensors are hashed in full.

    Args:
        folder: a checkpoint in Hugging Face format, or a PEFT adapter.

    Returns:
        None where the folder holds no weights.

    Raises:
        ValueError: a file that is no safetensors file.
    """
    adapter = folder / ADAPTER_WEIGHTS[0]
    whole = sorted(file for file in folder.glob("*.safetensors") if file.name != HEAD)
    files = [adapter] if adapter.is_file() else whole
    if files:
        return _digest(dict(pair for file in files for pair in _tensors(file)))
    others = {file.name: file_hash(file).encode() for file in sorted(folder.glob("*.bin"))}
    return _digest(others) if others else None


def _digest(parts: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(hashlib.sha256(name.encode()).digest() + parts[name])
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, bytes]]:
    """(name, digest) of every tensor: the format is a length, a JSON header with offsets, and the values."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= file.stat().st_size - 8:
            raise ValueError(f"{file} is no safetensors file")
        try:
            header = json.loads(stream.read(length))
            entries = [
                (name, f"{entry['dtype']} {entry['shape']}", *entry["data_offsets"])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
        for name, shape, begin, end in entries:
            values = _ends(stream, 8 + length + begin, 8 + length + end)
            yield name, hashlib.sha256(shape.encode() + values).digest()


def _ends(stream: BinaryIO, begin: int, end: int) -> bytes:
    stream.seek(begin)
    first = stream.read(min(SAMPLE, end - begin))
    stream.seek(max(begin, end - SAMPLE))
    return first + stream.read(end - stream.tell())


def content_hash(content: object) -> str:
    """The SHA-256 in hex of what JSON can hold, whatever the order of its names; anything else counts as its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """The SHA-256 in hex of the whole file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
