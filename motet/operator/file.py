"""The operator's file, the environment and the flags → settings, with all problems reported together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as EnvironmentSettingsError

from motet.composers.plugins import load_strategies
from motet.composers.spec import Composition, CompositionError, build_plan, parse_composition
from motet.models.files import ADAPTER_CONFIG, CONFIG
from motet.models.gguf import SUFFIX, is_gguf
from motet.models.hub import is_hub_id
from motet.operator.access import policy_problems
from motet.operator.families import naming_problems
from motet.operator.gates import Gated, is_gated, read_gated
from motet.operator.keys import read_keys
from motet.operator.settings import Families, Settings
from motet.settings import SettingsError, Tree, closest, nearest, read_mapping, sentences

MODEL_FILES = (CONFIG, ADAPTER_CONFIG)  # one of them makes a folder a model's or an adapter's
LINK = re.compile(r"(tcp|udp|sctp)://")  # what Kubernetes writes into MOTET_SERVER_PORT for a service motet-server


class ConfigError(SettingsError):
    """The operator's file, its models or its compositions cannot be used."""


@dataclass(frozen=True)
class Configuration:
    """`file`: the operator's file; `layers`: where values come from, strongest first: flag, environment, file;
    `gated`: the compositions that a gate guards, which `compositions` does not hold."""

    settings: Settings
    compositions: Mapping[str, Composition]
    file: Path
    layers: Mapping[str, Tree]
    gated: Mapping[str, Gated] = dataclass_field(default_factory=dict[str, Gated])

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self.file.parent

    def origins(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted name, value, origin) of every effective setting; secrets masked."""
        for name, value in _leaves(_shown(self.settings)):
            yield name, value, next((kind for kind, tree in self.layers.items() if _has(tree, name)), "default")


def load(path: Path, flags: Tree | None = None, *, check_paths: bool = True) -> Configuration:
    """The effective configuration: flag > environment > file > default.

    Raises:
        ConfigError: all problems of all sources together.
    """
    layers = {"flag": flags or {}, "environment": _environment(), "file": _read(path)}
    merged: Tree = {}
    for tree in reversed(layers.values()):
        merged = _merge(merged, tree)
    file = path.resolve()
    folder = file.parent
    settings, problems = _validated(merged)
    if settings is not None:
        settings, unread = _with_keys_of_file(settings, folder)
        settings = _with_audit_log_in(settings, folder)
        problems += unread + _examples(settings)
        problems += _unwritable(settings.server.audit_log) if check_paths else []
    problems += _strategies(merged)
    compositions, gated, composition_problems = _compositions(merged)
    if settings is not None and not problems and not composition_problems:
        problems += policy_problems(settings, [*compositions, *gated])
    problems += _unknown_variables() + composition_problems + _collisions(merged) + _families(merged)
    problems += _missing_paths(merged, folder) if check_paths else []
    if settings is None or problems:
        raise ConfigError(problems)
    return Configuration(settings, compositions, file, layers, gated)


def _read(path: Path) -> Tree:
    try:
        return read_mapping(path, "with 'models'")
    except SettingsError as error:
        raise ConfigError(error.problems) from error


def _environment() -> Tree:
    try:
        return EnvSettingsSource(Settings)()
    except EnvironmentSettingsError as error:
        raise ConfigError([f"environment: {error}"]) from error


def _unknown_variables() -> list[str]:
    """Variables with a `__` that name no section, and settings that are spelt with one `_`; others that begin with
    MOTET_ may be anybody's, as Kubernetes' MOTET_SERVICE_HOST is."""
    known = [f"MOTET_{section.upper()}" for section in Settings.model_fields]
    flat = {spelling.replace("__", "_"): spelling for spelling in _nested_variables()}
    problems: list[str] = []
    for variable, value in sorted(os.environ.items()):
        section, sign, rest = variable.upper().partition("__")
        if sign and section.startswith("MOTET_") and section not in known:
            close = closest(section, known)
            hint = f" Sections: {', '.join(known)}." if close is None else f" Did you mean {close}__{rest}?"
            problems.append(f"environment: {variable} names no setting.{hint}")
        elif variable.upper() in flat and not LINK.match(value):
            problems.append(f"environment: {variable} names no setting. Did you mean {flat[variable.upper()]}?")
    return problems


def _nested_variables() -> Iterator[str]:
    for section, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from (f"MOTET_{section}__{name}".upper() for name in info.annotation.model_fields)


def _merge(weak: Tree, strong: Tree) -> Tree:
    merged = dict(weak)
    for key, value in strong.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], cast(Tree, value)) if both else value
    return merged


def _validated(merged: Tree) -> tuple[Settings | None, list[str]]:
    try:
        return Settings(**merged), []
    except ValidationError as error:
        told = sentences(error.errors(include_url=False), Settings, merged, _said)
        return None, [f"{sentence}." for sentence in told]


def _said(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ")


def _with_keys_of_file(settings: Settings, folder: Path) -> tuple[Settings, list[str]]:
    """`server.api_keys` with those of `server.api_keys_file`."""
    server = settings.server
    if server.api_keys_file is None:
        return settings, []
    try:
        found = read_keys(folder / Path(server.api_keys_file).expanduser())
    except ValueError as error:
        return settings, [f"server.api_keys_file: {error}."]
    together = tuple(dict.fromkeys((*server.api_keys, *map(SecretStr, found))))
    return settings.model_copy(update={"server": server.model_copy(update={"api_keys": together})}), []


def _with_audit_log_in(settings: Settings, folder: Path) -> Settings:
    """`server.audit_log` as an absolute path."""
    if settings.server.audit_log is None:
        return settings
    file = folder / Path(settings.server.audit_log).expanduser()
    return settings.model_copy(update={"server": settings.server.model_copy(update={"audit_log": str(file)})})


def _unwritable(audit_log: str | None) -> list[str]:
    if audit_log is None:
        return []
    file = Path(audit_log)
    if not file.parent.is_dir():
        return [f"server.audit_log: {file.parent} is no folder."]
    fits = os.access(file, os.W_OK) and not file.is_dir() if file.exists() else os.access(file.parent, os.W_OK)
    return [] if fits else [f"server.audit_log: {file} cannot be written."]


def _entries(merged: Tree, section: str) -> Tree:
    entries = merged.get(section)
    return cast(Tree, entries) if isinstance(entries, dict) else {}


def _strategies(merged: Tree) -> list[str]:
    """Loads those of other packages, and says which there are not."""
    named = merged.get("strategies")
    names = [name for name in cast("list[object]", named) if isinstance(name, str)] if isinstance(named, list) else []
    return [f"strategies: {problem}" for problem in load_strategies(names)]


def _compositions(merged: Tree) -> tuple[dict[str, Composition], dict[str, Gated], list[str]]:
    """The named compositions, with the models that they name checked, and those that a gate guards."""
    models, gates = _entries(merged, "models"), list(_entries(merged, "gates"))
    written = {str(name): value for name, value in _entries(merged, "compositions").items()}
    sides = [*map(str, models), *(name for name, value in written.items() if not is_gated(value))]
    compositions, gated, problems = dict[str, Composition](), dict[str, Gated](), list[str]()
    for name, value in written.items():
        if name not in sides:
            found, wrong = read_gated(name, cast(Tree, value), gates, sides)
            problems += wrong
            gated |= {} if found is None else {name: found}
            continue
        try:
            compositions[name] = parse_composition(value, strict=False)
            # ids of texts are known only once the tokenizers are loaded: any single id does here
            build_plan(compositions[name], None, known=models, token_id=lambda _: 0)
        except CompositionError as error:
            problems.append(f"compositions.{name}: {error.message}")
    return compositions, gated, problems


def _examples(settings: Settings) -> list[str]:
    """Models that the page's examples name and that are not there."""
    names = [*settings.models, *settings.compositions]
    return [
        f"server.playground.examples.{i}: unknown model {name!r}.{nearest(name, names)}"
        for i, example in enumerate(settings.server.playground.examples)
        for name in (example.model, *example.beside)
        if name not in names
    ]


def _collisions(merged: Tree) -> list[str]:
    both = sorted(set(map(str, _entries(merged, "models"))) & set(map(str, _entries(merged, "compositions"))))
    return [f"compositions.{name}: a model has the same name." for name in both]


def _families(merged: Tree) -> list[str]:
    try:
        families = TypeAdapter(Families).validate_python(_entries(_entries(merged, "engine"), "families"))
    except ValidationError:  # told with the other settings
        return []
    return naming_problems(families, list(map(str, _entries(merged, "models"))))


def _missing_paths(merged: Tree, folder: Path) -> list[str]:
    problems: list[str] = []
    models = _entries(merged, "models")
    for name, entry in models.items():
        written = cast(Tree, entry) if isinstance(entry, dict) else {}
        if written.get("base") in models:  # a soft prompt's may be named
            written = {**written, "base": None}
        for field, files in (("path", MODEL_FILES), ("base", MODEL_FILES[:1])):
            path = written.get(field)
            if isinstance(path, str) and path:
                problems += [f"models.{name}.{field}: {problem}" for problem in _path_problems(path, folder, files)]
    return problems


def _path_problems(path: str, folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with a path that must be a hub id, a GGUF file, or a folder that holds one of `files`."""
    local = folder / Path(path).expanduser()
    try:
        local.exists()
    except OSError as error:
        yield f"{path[:40]!r}… can be no path: {error.strerror}."
        return
    if local.is_dir() and not any((local / file).is_file() for file in files):
        yield f"{local} is no model folder: it has no {' and no '.join(files)}."
    if local.is_file() and not is_gguf(local):
        yield f"{local} is no folder and no {SUFFIX} file."
    if not local.exists() and not is_hub_id(path):
        yield f"{local} does not exist.{nearest(local.name, _models_beside(local))}"


def _models_beside(missing: Path) -> list[str]:
    """What its folder holds that could have been meant."""
    if not missing.parent.is_dir():
        return []
    return [path.name for path in missing.parent.iterdir() if path.is_dir() or is_gguf(path)]


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, BaseModel):
        return {name: _shown(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        return [_shown(item) for item in cast("list[Any]", value)]
    return value


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(cast(Tree, value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _has(tree: Any, name: str) -> bool:
    """Whether a layer sets a dotted name; model names may hold dots themselves, a list stands for a whole section."""
    if not isinstance(tree, dict):
        return isinstance(tree, list)
    branches = cast(Tree, tree)
    if name in branches:
        return True
    return any(name.startswith(f"{key}.") and _has(value, name[len(str(key)) + 1 :]) for key, value in branches.items())
