"""Where a model's weights come from: a checkpoint, a PEFT adapter and the base that it was trained on, or a soft prompt
and the model of the file in front of which it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from motet.models import files, gguf, hub
from motet.models.checkpoint import local
from motet.models.files import ADAPTER_CONFIG, CONFIG, is_adapter
from motet.models.soft_prompts import virtual_tokens
from motet.operator.file import ConfigError, Configuration
from motet.operator.settings import ModelConfig, source_of

T = TypeVar("T")
WEIGHTS_FIELDS = ("dtype", "device", "quantize", "draft_quantize")  # of a model's own weights


@dataclass(frozen=True, slots=True)
class Source:
    """`path`: the folder, GGUF file or hub id that the operator named; `base`: an adapter's base, None for others.
    `backbone`: the name of the model that computes a soft prompt of `virtual_tokens`, or an adapter beside its own
    weights (`backbones`); its checkpoint is the base."""

    path: str
    revision: str | None = None
    base: str | None = None
    base_revision: str | None = None
    backbone: str | None = None
    virtual_tokens: int = 0

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
        return self.base is None or (local(self.path, self.revision) / "tokenizer_config.json").is_file()

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """Folder, GGUF file or hub id, and revision."""
        return (self.path, self.revision) if self.has_tokenizer else (self.checkpoint, self.checkpoint_revision)

    def folder(self) -> Path | None:
        """Where the files of `path` lie on this machine, None for what was never downloaded."""
        return local_folder(self.path, self.revision, ADAPTER_CONFIG if self.base else CONFIG)


def find_source(model: ModelConfig, folder: Path, models: Mapping[str, ModelConfig] | None = None) -> Source:
    """The source of a model of the operator's file in `folder`.

    Args:
        models: all of the file; without them there is nothing that a soft prompt could stand in front of.

    Raises:
        ValueError: an adapter without a base that can be found, a base for what is no adapter.
        OSError: a file that cannot be read.
    """
    path = source_of(model, folder)
    try:
        place = local(path, model.revision)
    except hub.HubError as error:
        raise ValueError(f"{folder / path} does not exist, and as a hub id: {error}.") from error
    found = place / ADAPTER_CONFIG
    if not found.is_file():
        if model.base is not None:
            raise ValueError(f"base is given, but {path} is no adapter: it has no {ADAPTER_CONFIG}.")
        return Source(path, model.revision)
    written: Any = json.loads(found.read_text("utf-8"))
    if not isinstance(written, dict):
        raise ValueError(f"{found} is no object.")
    written = cast("dict[str, Any]", written)
    if (tokens := virtual_tokens(written)) is not None:
        return _soft_prompt(Source(path, model.revision, virtual_tokens=tokens), model, written, folder, models)
    base = _base(model, written, found.parent, folder)
    if gguf.is_gguf(base):
        raise ValueError(f"the adapter's base {base} is a GGUF file: adapters are merged into unquantised weights.")
    if is_adapter(Path(base)):
        raise ValueError(f"the adapter's base {base} is itself an adapter: merge that one first.")
    return Source(path, model.revision, base, None if model.base else written.get("revision"))


def find_sources(configuration: Configuration) -> dict[str, Source]:
    """Raises ConfigError: adapters whose bases cannot be found, all together."""
    models, folder = configuration.settings.models, configuration.folder
    sources, problems = each_model(configuration, lambda _, model: find_source(model, folder, models))
    if problems:
        raise ConfigError(problems)
    return sources


def each_model(configuration: Configuration, read: Callable[[str, ModelConfig], T]) -> tuple[dict[str, T], list[str]]:
    """What `read` makes of every model by its name, and what is wrong with those of which it makes nothing."""
    made: dict[str, T] = {}
    problems: list[str] = []
    for name, model in configuration.settings.models.items():
        try:
            made[name] = read(name, model)
        except ConfigError as error:
            problems += error.problems
        except (OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    return made, problems


def file_problems(source: Source) -> list[str]:
    """What is wrong with a model's files before weights are read, one sentence each. Raises HubError."""
    path, revision = source.checkpoint, source.checkpoint_revision
    found = list(files.problems(local(path, revision), weights=Path(path).exists()))
    if source.base is not None and Path(source.path).is_dir():
        found += files.adapter_problems(Path(source.path))
    return found


def _base(model: ModelConfig, written: dict[str, Any], adapter: Path, folder: Path) -> str:
    """The adapter's base: what the operator says, else what the adapter says."""
    name = model.base or written.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"the adapter does not name its base: name it with 'base', relative to {folder}.")
    places = [folder] if model.base else [adapter, folder]
    candidates = [(place / Path(name).expanduser()).resolve() for place in places]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is not None:
        return str(found)
    if hub.is_hub_id(name):
        return str(name)
    looked = " and ".join(dict.fromkeys(map(str, candidates)))
    raise ValueError(f"the adapter's base {name!r} was not found at {looked}: name it with 'base'.")


def _soft_prompt(
    source: Source, model: ModelConfig, written: dict[str, Any], folder: Path, models: Mapping[str, ModelConfig] | None
) -> Source:
    """Raises ValueError: it has settings that are its backbone's, or stands in front of no model of the file."""
    if models is None:
        raise ValueError("a soft prompt is no model alone: it stands in front of one of an operator's file.")
    own = [field for field in WEIGHTS_FIELDS if getattr(model, field) is not None]
    if own:
        raise ValueError(f"{own[0]}: a soft prompt is computed by the model in front of which it stands: set it there.")
    name = _backbone(model, written, local(source.path, source.revision), folder, models)
    try:
        behind = find_source(models[name], folder)
    except ValueError as error:
        raise ValueError(f"the model {name!r}, in front of which it stands: {error}") from error
    return replace(source, base=behind.checkpoint, base_revision=behind.checkpoint_revision, backbone=name)


def _backbone(
    model: ModelConfig, written: dict[str, Any], place: Path, folder: Path, models: Mapping[str, ModelConfig]
) -> str:
    """The model of the file that `base` names, or whose path is the base that the soft prompt names itself."""
    if model.base is not None and model.base in models and models[model.base] is not model:
        return model.base
    base = _base(model, written, place, folder)
    named = [name for name, other in models.items() if other is not model and source_of(other, folder) == base]
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(f"its base {base} is that of {' and '.join(named)}: name one of them with 'base'.")
    raise ValueError(
        f"a soft prompt stands in front of a model of the operator's file, and its base {base} is none: add it there, "
        "or name another one with 'base'."
    )


def local_folder(path: str, revision: str | None, file: str) -> Path | None:
    """The folder of a local path, or the cached snapshot of a hub id that holds `file`; None for a single file."""
    if Path(path).exists():
        return Path(path) if Path(path).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None
