"""Where a recipe's relative paths start."""

from __future__ import annotations

from pathlib import Path

from motet.training.run.errors import RunError

DEMO = "demo"


def resolve_root(root: str | None, recipe_folder: Path) -> Path:
    """The recipe's own folder, another one (relative to it), or the demo family's (`demo`, `demo:SEED`).

    The demo family is built where it is missing from the cache.

    Raises:
        RunError: no such folder, a seed that is no number, or a demo family that cannot be built.
    """
    if root is None:
        return recipe_folder
    folder = (recipe_folder / Path(root).expanduser()).resolve()
    name, _, seed = root.partition(":")
    if name == DEMO and not folder.is_dir():
        return _demo(seed)
    if not folder.is_dir():
        raise RunError(f"root: {folder} is no folder; a folder, `{DEMO}` or `{DEMO}:SEED` is expected")
    return folder


def _demo(seed: str) -> Path:
    from motet.demo.family import FamilyBuildError, build_family

    if seed and not seed.isdecimal():
        raise RunError(f"root: {DEMO}:{seed}: the seed must be a whole number")
    try:
        return build_family(int(seed or 0))
    except (FamilyBuildError, OSError) as error:
        raise RunError(f"root: the demo family cannot be built: {error}") from error
