"""Which roles a strategy has."""

from __future__ import annotations

from collections.abc import Iterator

from motet.composers.roles import BaseObject, RoleObject, Spec, field_names
from motet.composers.strategies import STRATEGIES
from motet.settings import models_in, offer


def role_names(strategy: str) -> tuple[str, ...]:
    """The roles of a strategy, `base` among them, in the order of its fields.

    Raises:
        ValueError: no such strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}.{offer(strategy, STRATEGIES)}")
    return tuple(dict.fromkeys(_roles(STRATEGIES[strategy])))


def _roles(spec: type[Spec]) -> Iterator[str]:
    for attribute, name in field_names(spec).items():
        inner = [kind for kind in models_in(spec.model_fields[attribute].annotation) if issubclass(kind, Spec)]
        if any(issubclass(kind, RoleObject | BaseObject) for kind in inner):
            yield name
        else:
            for kind in inner:
                yield from _roles(kind)
