"""Where a model lies, and what is wrong with it before a byte of its weights is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from motet.training.run.errors import nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def locate(path: str, root: Path) -> str:
    """The absolute folder of a recipe's `path` where it exists below `root`, else the path as it stands: a hub id."""
    local = (root / Path(path).expanduser()).resolve()
    return str(local) if local.exists() else path


def is_offline() -> bool:
    """Whether the environment forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def source_problems(name: str, path: str, root: Path, *, revision: str | None = None) -> Iterator[str]:
    """What keeps a model from being loaded, without loading it.

    Args:
        name: the recipe's field, for the messages.
        path: a folder (relative to `root`) or a hub id.
        root: the recipe's root.
        revision: of a hub id.
    """
    local = Path(locate(path, root))
    if local.is_absolute():
        yield from (f"{name}: {problem}" for problem in _folder_problems(local))
    elif not HUB_ID.fullmatch(path):
        yield f"{name}: {root / path} does not exist{_near(root / path)}"
    elif is_offline() and not _cached(path, revision):
        yield (
            f"{name}: {path!r} is no folder below {root}, HF_HUB_OFFLINE forbids asking the hub, and the hub's local "
            "cache does not hold it"
        )


def _near(missing: Path) -> str:
    folders = [folder.name for folder in missing.parent.glob("*/")] if missing.parent.is_dir() else []
    return nearest(missing.name, folders)


def _cached(repository: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str)


def _folder_problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder} is no folder"
        return
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        yield (
            f"{folder} is an adapter alone: train it with tuning.merge=true"
            if adapter
            else (f"{folder} is no model folder: it has no config.json")
        )
        return
    indices = [folder / f"{name}.index.json" for name in WEIGHTS]
    index = next((file for file in indices if file.is_file()), None)
    if index is not None:
        yield from _shard_problems(index)
    elif not any((folder / name).is_file() for name in WEIGHTS):
        yield f"{folder} holds no weights ({' or '.join(WEIGHTS)})"
    for file in sorted(folder.glob("*.safetensors")):
        yield from _damage(file)


def _shard_problems(index: Path) -> Iterator[str]:
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        yield f"{index} is not readable as an index of weights: {error!r}"
        return
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        yield f"{index.parent} misses {len(missing)} of {len(shards)} weight files: {', '.join(missing)}"


def _damage(file: Path) -> Iterator[str]:
    """A header that is none, or fewer bytes than it promises."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        yield f"{file} is damaged: {error}"
