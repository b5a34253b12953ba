"""What is wrong with a checkpoint's files, told before a byte of weights is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from motet.models import gguf

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
HEAD = "head.safetensors"  # what is trained beside a model, see `models.heads`
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")  # all that is read before weights are
UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError)  # an index that is none
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of a pointer, the format's own rule


def problems(place: Path, *, weights: bool = True) -> Iterator[str]:
    """What keeps a checkpoint from being loaded.

    Args:
        place: a folder in Hugging Face format, or a GGUF file.
        weights: whether the weights must be there already; not in a snapshot of a hub id, where they come later.
    """
    if gguf.is_gguf(place):
        yield from [pointer(place)] if _is_pointer(place) else gguf.problems(place)
    elif not place.is_dir():
        yield f"{place} is no folder and no {gguf.SUFFIX} file"
    elif not (place / CONFIG).is_file():
        yield f"{place} is no model folder: it has no config.json"
    else:
        yield from _folder_problems(place, WEIGHTS if weights else ())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_problems(folder: Path) -> Iterator[str]:
    """What keeps a PEFT adapter's own files from being loaded."""
    return _folder_problems(folder, ADAPTER_WEIGHTS)


def _folder_problems(folder: Path, weights: tuple[str, ...]) -> Iterator[str]:
    loaded = _weight_files(folder, weights or WEIGHTS)
    small = [file for pattern in SMALL_FILES for file in sorted(folder.glob(pattern))]
    pointers = [file for file in (*loaded, *small) if file.is_file() and _is_pointer(file)]
    if pointers:
        yield pointer(*pointers)
        return
    for name in (CONFIG, "tokenizer_config.json", "generation_config.json"):  # tokenizer.json may be large
        yield from _json_problems(folder / name)
    if weights:
        yield from _weight_problems(folder, weights)
    for file in loaded:
        if file.suffix == ".safetensors" and file.is_file():
            yield from _damage(file)


def _weight_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files that are loaded, whole or in shards: weights in other formats may lie beside them, broken or not."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            with suppress(*UNREADABLE):  # told by `_shard_problems`
                return [folder / shard for shard in _shards(index)]
    return []


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))


def pointer(first: Path, *others: Path) -> str:
    """The sentence about files that git-lfs would have replaced."""
    more = f" and {len(others)} more" if others else ""
    return f"{first.parent} holds git-lfs pointers instead of files ({first.name}{more}): run `git lfs pull` there"


def _is_pointer(file: Path) -> bool:
    if file.stat().st_size > 1024:
        return False
    return file.read_bytes().startswith(LFS_POINTER)


def _json_problems(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        yield f"{file} is not readable as JSON: {error}"
        return
    if not isinstance(tree, dict):
        yield f"{file} is no JSON object"


def _weight_problems(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
    if any((folder / name).is_file() for name in names):
        return
    index = next((file for name in names if (file := folder / f"{name}.index.json").is_file()), None)
    if index is not None:
        yield from _shard_problems(index)
        return
    others = sorted(file.name for file in folder.glob(f"*{gguf.SUFFIX}"))
    hint = f"; to serve {others[0]}, name the file itself" if others else ""
    yield f"{folder} holds no weights ({' or '.join(names)}){hint}"


def _shard_problems(index: Path) -> Iterator[str]:
    try:
        shards = _shards(index)
        missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    except UNREADABLE as error:
        yield f"{index} is not readable as an index of weights: {error!r}"
        return
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield f"{index.parent} misses {len(missing)} of {len(shards)} weight files: {named}"


def _damage(file: Path) -> Iterator[str]:
    """A header that is none, or another number of bytes than it promises."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        yield f"{file} is damaged: {error}"
