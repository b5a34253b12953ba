"""Which roles a strategy has, and which of them are an expert and its untuned partner."""

from __future__ import annotations

from collections.abc import Iterator

from motet.composers.roles import BaseObject, RoleObject, Spec, field_names
from motet.composers.strategies import STRATEGIES
from motet.settings import models_in, offer

# strategy → (the expert's role, the role of the model that it is set against)
PARTNER_ROLES: dict[str, tuple[str, str]] = {
    "proxy_tuning": ("expert", "antiexpert"),
    "dynamic": ("expert", "antiexpert"),
    "budget": ("expert", "antiexpert"),
    "eft": ("tuned", "reference"),
    "novelty": ("base", "untuned"),
    "unlearn": ("assistant", "base"),
    "generic": ("reinforced", "base"),
}


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
