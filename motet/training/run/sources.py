"""Where a recipe's paths start, where a model lies, and what is wrong with it before a byte of its weights is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from motet.models import files
from motet.models.hub import is_hub_id
from motet.settings import nearest
from motet.training.run.errors import RunError


def resolve_root(root: str | None, recipe_folder: Path) -> Path:
    """Where a recipe's relative paths start: its own folder, or another one (relative to it).

    Raises:
        RunError: no such folder. Names of folders that are made first, such as `demo`, are resolved by the caller.
    """
    if root is None:
        return recipe_folder
    folder = (recipe_folder / Path(root).expanduser()).resolve()
    if not folder.is_dir():
        raise RunError(f"root: {folder} is no folder; a folder is expected, or `demo` or `demo:SEED` of `motet train`")
    return folder


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
        path: a folder or a GGUF file (relative to `root`), or a hub id.
        root: the recipe's root.
        revision: of a hub id.
    """
    local = Path(locate(path, root))
    if local.is_absolute():
        yield from (f"{name}: {problem}" for problem in _problems(local))
    elif not is_hub_id(path):
        yield f"{name}: {root / path} does not exist.{_near(root / path)}"
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


def _problems(place: Path) -> Iterator[str]:
    if files.is_adapter(place) and not (place / files.CONFIG).is_file():
        yield f"{place} is an adapter alone: train it with tuning.merge=true"
        return
    yield from files.problems(place)
