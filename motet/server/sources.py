"""Where a model's weights come from: a checkpoint, or a PEFT adapter and the base that it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from motet.server.config import ModelConfig, source_of
from motet.server.operator_file import HUB_ID

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """`path`: the folder or hub id that the operator named; `base`: that of an adapter's base, None for others."""

    path: str
    revision: str | None = None
    base: str | None = None
    base_revision: str | None = None

    @property
    def checkpoint(self) -> str:
        """What has a configuration and full weights."""
        return self.base or self.path

    @property
    def checkpoint_revision(self) -> str | None:
        return self.base_revision if self.base else self.revision

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer lies beside the weights that were named; an adapter may have only its base's."""
        return self.base is None or (Path(self.path) / "tokenizer_config.json").is_file()

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """Folder or hub id, and revision."""
        return (self.path, self.revision) if self.has_tokenizer else (self.checkpoint, self.checkpoint_revision)

    def folder(self) -> Path | None:
        """Where the files of `path` lie on this machine, None for what was never downloaded."""
        return local_folder(self.path, self.revision, ADAPTER_CONFIG if self.base else "config.json")


def find_source(model: ModelConfig, folder: Path) -> Source:
    """The source of a model of the operator's file in `folder`.

    Raises:
        ValueError: an adapter without a base that can be found, a base for what is no adapter.
        OSError: a file that cannot be read.
    """
    path = source_of(model, folder)
    found = _adapter_config(path, model.revision)
    if found is None:
        if model.base is not None:
            raise ValueError(f"base is given, but {path} is no adapter: it has no {ADAPTER_CONFIG}.")
        return Source(path, model.revision)
    written: Any = json.loads(found.read_text("utf-8"))
    if not isinstance(written, dict):
        raise ValueError(f"{found} is no object.")
    written = cast("dict[str, Any]", written)
    base = _base(model, written, found.parent, folder)
    if Path(base, ADAPTER_CONFIG).is_file():
        raise ValueError(f"the adapter's base {base} is itself an adapter: merge that one first.")
    return Source(path, model.revision, base, None if model.base else written.get("revision"))


def _adapter_config(path: str, revision: str | None) -> Path | None:
    """The file that makes a folder or hub id an adapter; the hub is asked only about what was never downloaded."""
    from transformers.utils import peft_utils

    if local_folder(path, revision, "config.json") is not None and not Path(path).is_dir():
        return None
    found: str | None = cast(Any, peft_utils).find_adapter_config_file(path, revision=revision)
    return None if found is None else Path(found)


def _base(model: ModelConfig, written: dict[str, Any], adapter: Path, folder: Path) -> str:
    """The adapter's base: what the operator says, else what the adapter says."""
    name = model.base or written.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"the adapter does not name its base: name it with 'base', relative to {folder}.")
    places = [folder] if model.base else [adapter, folder]
    candidates = [(place / Path(name).expanduser()).resolve() for place in places]
    local = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if local is not None:
        return str(local)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return str(name)
    looked = " and ".join(dict.fromkeys(map(str, candidates)))
    raise ValueError(f"the adapter's base {name!r} was not found at {looked}: name it with 'base'.")


def local_folder(path: str, revision: str | None, file: str) -> Path | None:
    """The folder of a local path, or the cached snapshot of a hub id that holds `file`."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None
