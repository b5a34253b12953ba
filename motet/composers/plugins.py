"""Strategies of other packages.

A package names its classes under the entry point group `motet.strategies`:

    [project.entry-points."motet.strategies"]
    interpolated = "motet_interpolated:Interpolated"

and the operator's file names those that its server has. Nothing else loads them: a request cannot name a package.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points

from motet.composers.catalogue import catalogue, fields
from motet.composers.spec import add_strategy, strategy_kinds
from motet.composers.strategies.strategy import Strategy
from motet.settings import nearest

GROUP = "motet.strategies"


def load_strategies(names: Iterable[str]) -> list[str]:
    """Adds installed packages' strategies to those that compositions may be of, and says what is wrong with the others.
    Their code runs here, with the rights of the server."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    problems: list[str] = []
    for name in dict.fromkeys(names):
        if name not in installed:
            others = f"{nearest(name, installed)} Installed: {', '.join(sorted(installed)) or 'none'}."
            problems.append(f"no installed package has a strategy {name!r} (entry point group {GROUP}).{others}")
            continue
        try:
            kind: object = installed[name].load()
        except Exception as error:  # the package's own code
            problems.append(f"strategy {name!r} cannot be loaded: {type(error).__name__}: {str(error)[:200]}")
            continue
        if (known := strategy_kinds().get(name)) is kind:
            continue
        wrong = f"there is a strategy {name!r} already" if known is not None else _unfit(name, kind)
        if wrong is not None:
            problems.append(f"{installed[name].value}: {wrong}.")
        elif isinstance(kind, type) and issubclass(kind, Strategy):
            add_strategy(name, kind)
            catalogue.cache_clear()
            fields.cache_clear()
    return problems


def _unfit(name: str, kind: object) -> str | None:
    """Why a class is no strategy of that name."""
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        return "it is no class that derives from motet's Strategy"
    if inspect.isabstract(kind):
        return "it has no `shift`"
    if kind.model_fields["strategy"].default != name:
        return f'its field `strategy` must be `Literal["{name}"]` with that default'
    if not (kind.__doc__ or "").startswith("`"):
        return "its docstring must begin with the formula between backquotes, which GET /v1/strategies shows"
    return None
