"""Which roles a strategy has, and which of them are an expert and its untuned partner."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import get_args

from motet.composers.roles import BaseObject, RoleObject, Spec, field_names
from motet.composers.strategies import STRATEGIES

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
        near = get_close_matches(strategy, STRATEGIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown strategy {strategy!r}.{hint} Allowed: {', '.join(STRATEGIES)}")
    return tuple(dict.fromkeys(_roles(STRATEGIES[strategy])))


def _roles(spec: type[Spec]) -> Iterator[str]:
    for attribute, name in field_names(spec).items():
        inner = list(_specs(spec.model_fields[attribute].annotation))
        if any(issubclass(kind, RoleObject | BaseObject) for kind in inner):
            yield name
        else:
            for kind in inner:
                yield from _roles(kind)


def _specs(annotation: object) -> Iterator[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for argument in get_args(annotation):
        yield from _specs(argument)
