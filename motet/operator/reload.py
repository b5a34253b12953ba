"""The operator's file read anew while its models answer: compositions, keys and policies, and models as far as the
engine takes them in and lets them go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from motet.engines.base import Engine
from motet.models.info import ModelInfo
from motet.operator.access import policy_problems
from motet.operator.file import ConfigError, Configuration, load
from motet.operator.loading import load_models
from motet.operator.preflight import Prepared, prepare
from motet.operator.registry import Registry

if TYPE_CHECKING:
    from motet.engines.torch import Adapter, Member, Model

AT_ONCE = ("server.api_keys", "server.api_keys_file")  # of the sections that else only a start reads
AT_START = ("server.", "engine.", "log.")
LEAVING_SECONDS = 60.0  # behind its last body, a request that came before a model left may be prepared for so long


@runtime_checkable
class Changeable(Protocol):
    """An engine whose models may come and go."""

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...
    def backbone(self, name: str) -> Member | Adapter | None: ...
    def attach(self, model: Model) -> None: ...
    def keep(self, name: str) -> bool: ...
    def detach(self, name: str, after: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`loaded` is attached already; `unloaded` is to be detached once nobody is given `registry`'s predecessor any
    more. `needs_restart`: settings that have changed without effect."""

    configuration: Configuration
    registry: Registry
    loaded: tuple[str, ...]
    unloaded: tuple[str, ...]
    needs_restart: tuple[str, ...]


def reloaded(now: Configuration, registry: Registry, engine: Engine, without: Collection[str] = ()) -> Reloaded:
    """What the file says now, with its new models loaded.

    Args:
        now: what runs, with the flags it was started with.
        without: models of the file that shall not be loaded.

    Raises:
        ConfigError: everything that is wrong with the file; then with its new models; nothing has changed then.
    """
    read = load(now.file, now.layers["flag"])
    wanted = _without(read, without)
    old, new = now.settings.models, wanted.settings.models
    changed = [name for name in new if name in registry.members and name in old and new[name] != old[name]]
    if changed:
        raise ConfigError([f"models.{name}: it is loaded otherwise; name it anew, or restart." for name in changed])
    coming = [name for name in new if name not in registry.members]
    going = tuple(name for name in registry.members if name not in new)
    if (coming or going) and not isinstance(engine, Changeable):
        both = (*coming, *going)
        raise ConfigError([f"models.{name}: this engine loads models at its start alone." for name in both])
    other = [name for name in coming if name in engine.models and old.get(name) != new[name]]
    if other:
        raise ConfigError(
            [f"models.{name}: another one of this name is leaving; try again in two minutes." for name in other]
        )
    if problems := policy_problems(wanted.settings, [*wanted.compositions, *wanted.gated]):
        raise ConfigError(problems)  # nothing would stand in for a model any more
    prepared = prepare(wanted)
    behind = {name: engine.models[name].backbone for name in new if name in engine.models}
    if held := [name for name, backbone in behind.items() if backbone in going]:
        raise ConfigError(
            [f"models.{name}: {behind[name]!r} computes it, and stays as long as it does." for name in held]
        )
    kept = {name: registry.members.get(name, known) for name, known in prepared.registry.members.items()}
    infos = _attached(wanted, prepared, coming, engine) if isinstance(engine, Changeable) and coming else {}
    members = {name: replace(known, info=infos[name]) if name in infos else known for name, known in kept.items()}
    return Reloaded(read, replace(prepared.registry, members=members), tuple(coming), going, _needs_restart(now, read))


def _without(configuration: Configuration, names: Collection[str]) -> Configuration:
    models = {name: model for name, model in configuration.settings.models.items() if name not in names}
    return replace(configuration, settings=configuration.settings.model_copy(update={"models": models}))


def _attached(
    wanted: Configuration, prepared: Prepared, coming: Collection[str], engine: Changeable
) -> dict[str, ModelInfo]:
    """Loads the new models, all or none, and keeps those that were leaving; name → what is known of it."""
    kept = {name: engine.models[name] for name in coming if name in engine.models and engine.keep(name)}
    new = [name for name in coming if name not in kept]
    try:
        loaded = load_models(wanted, prepared, new, known=engine.backbone)
    except BaseException:
        for name in kept:  # nothing has changed: they go on leaving
            engine.detach(name, LEAVING_SECONDS)
        raise
    for model in loaded.values():
        engine.attach(model)
    return kept | {name: model.info for name, model in loaded.items()}


def _needs_restart(now: Configuration, read: Configuration) -> tuple[str, ...]:
    before, after = _values(now), _values(read)
    names = [name for name in {**before, **after} if name.startswith(AT_START) and name not in AT_ONCE]
    return tuple(name for name in names if before.get(name) != after.get(name))


def _values(configuration: Configuration) -> Mapping[str, Any]:
    return {name: value for name, value, _ in configuration.origins()}
