"""Who can play what: which loaded models can be composed, and in which roles."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

from motet.composers.catalogue import catalogue, example, plan_of, roles_of
from motet.composers.plan import Plan
from motet.composers.spec import strategy_kinds
from motet.composers.vocabulary import can_share
from motet.experts.fit import open_roles
from motet.operator.loaded import LoadedModel
from motet.operator.registry import Registry


def casting(registry: Registry) -> list[dict[str, Any]]:
    """Every model that may be named, with those that it can be composed with (one vocabulary, itself among them), the
    roles that it can take in each strategy, the model that it is set against there, and its size."""
    members = {name: registry.members[name] for name in registry.names if name in registry.members}
    composable = set(_composable(members))
    return [
        {
            "id": name,
            "composes_with": [other for other in members if frozenset((name, other)) in composable],
            "roles": _roles(member, members.values()),
            "partner": _partner(member, members),
            "num_parameters": member.info.num_parameters,
        }
        for name, member in members.items()
    ]


def _composable(members: Mapping[str, LoadedModel]) -> Iterator[frozenset[str]]:
    """Pairs of models whose vocabularies fit, or of which one may be mapped, each with itself among them."""
    for (one, first), (other, second) in combinations_with_replacement(members.items(), 2):
        mapped = first.vocabulary.translated or second.vocabulary.translated
        if mapped or can_share(first.vocabulary, second.vocabulary):
            yield frozenset((one, other))


def _roles(member: LoadedModel, members: Collection[LoadedModel]) -> dict[str, list[str]]:
    bundles = [other.known.bundle for other in members if other is not member]
    kinds = strategy_kinds()
    return {
        told["id"]: open_roles(kinds[told["id"]], roles_of(told), member.known.bundle, bundles) for told in catalogue()
    }


def _partner(member: LoadedModel, members: Mapping[str, LoadedModel]) -> str | None:
    """The model whose weights its bundle names."""
    bundle = member.known.bundle
    weights = None if bundle is None or bundle.partner is None else bundle.partner.weights
    return None if weights is None else next((name for name, one in members.items() if one.weights == weights), None)


def sample_plan(strategy: str, model: str) -> Plan | None:
    """A plan of the strategy whose streams are all of one model: what an engine is asked whether it runs them."""
    body = example(strategy_kinds()[strategy])
    plan = plan_of(body) if body is not None else None
    return None if plan is None else replace(plan, streams=tuple(replace(s, model=model) for s in plan.streams))
