"""Strategies described for programs: what their own files say, and nothing that plans do not do."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from docs.generate import section
from motet.composers.catalogue import catalogue, example, papers, plan_of, roles_of
from motet.composers.spec import strategy_kinds
from motet.composers.strategies import STRATEGIES

TOLD = {told["id"]: told for told in catalogue()}
EACH = pytest.mark.parametrize("name", list(TOLD))


def parameters(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {parameter["name"]: parameter for parameter in told["parameters"]}


def test_every_strategy_is_described() -> None:
    assert list(TOLD) == [*STRATEGIES, "compose"]


@EACH
def test_it_is_the_documentation_in_pieces(name: str) -> None:
    """docs/strategies.md is made from the same texts: formula, description and every field with its meaning."""
    page = " ".join(section(strategy_kinds()[name]).split())
    told = TOLD[name]
    assert page.startswith(f"{told['formula']} {told['description']}".strip())
    for field in [*told["roles"], *told["parameters"], *told["groups"]]:
        assert field["description"], f"no text stands under the field {field['name']!r}"
        assert re.search(rf"\| `{field['name']}` \|[^|]*(\|[^|]*)+\| {re.escape(field['description'])} \|", page)
    assert told["summary"].endswith(".")


@EACH
def test_every_field_is_described_once(name: str) -> None:
    told = TOLD[name]
    names = [field["name"] for field in [*told["roles"], *told["parameters"], *told["groups"]]]
    schema = strategy_kinds()[name].model_json_schema()
    assert sorted(names) == sorted(set(schema["properties"]) - {"strategy"})
    required = {field["name"] for field in [*told["roles"], *told["parameters"], *told["groups"]] if field["required"]}
    assert required == set(schema.get("required", ()))


@EACH
def test_every_preprint_of_the_text_is_a_paper(name: str) -> None:
    text = inspect.cleandoc(strategy_kinds()[name].__doc__ or "")
    assert [paper["arxiv"] for paper in TOLD[name]["papers"] if paper["arxiv"]] == re.findall(r"arXiv:([\d.]+\d)", text)


def test_papers_are_read_off_the_text() -> None:
    text = (
        "`L` is a score. What's New? A Title, Over\ntwo Lines (Doe et al. 2024, arXiv:2401.00001). The `x` form (Old\n"
        "One, Roe 1999)."
    )
    assert [(paper.title, paper.authors, paper.arxiv) for paper in papers(text)] == [
        ("What's New? A Title, Over two Lines", "Doe et al. 2024", "2401.00001"),
        ("Old One", "Roe 1999", None),
    ]


@EACH
def test_the_cost_is_that_of_a_plan(name: str) -> None:
    body = example(strategy_kinds()[name])
    assert body is not None, "the shortest composition is one"
    plan = plan_of(body)
    assert plan is not None
    assert TOLD[name]["cost"]["forwards"] == len(plan.readers)


def test_costs_and_strengths() -> None:
    """By hand, of strategies of each kind."""
    costs = {name: (told["cost"]["forwards"], told["cost"]["models"]) for name, told in TOLD.items()}
    assert costs["proxy_tuning"] == (3, 3)
    assert costs["guidance"] == costs["context_aware"] == (2, 1)
    assert costs["rules"] == (1, 1)
    assert TOLD["eft"]["cost"]["per_entry"] == {"traits": 2}
    assert TOLD["product"]["cost"]["per_entry"] == {"members": 1}
    assert TOLD["proxy_tuning"]["strength"] == {"parameter": "alpha", "neutral": 0.0}
    assert TOLD["guidance"]["strength"] == {"parameter": "scale", "neutral": 1.0}
    assert TOLD["mixture"]["strength"] is None


def test_types_and_bounds_are_those_of_the_schema() -> None:
    alpha = parameters(TOLD["budget"])["alpha_max"]
    assert {key: alpha[key] for key in ("type", "exclusiveMinimum", "maximum", "default", "nullable")} == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "default": 1.0,
        "nullable": False,
    }
    assert parameters(TOLD["unlearn"])["filter"]["nullable"]
    assert parameters(TOLD["contrastive"])["form"]["enum"] == ["reasoning", "original"]
    assert parameters(TOLD["experts"])["alpha"]["default"] == [1.0]
    assert [p["name"] for p in TOLD["product"]["roles"][1]["parameters"]] == ["weight"]


def test_roles_of_groups_are_roles() -> None:
    assert roles_of(TOLD["dynamic"]) == ["base", "expert", "antiexpert"]
    assert roles_of(TOLD["context_aware"]) == ["base"], "a context is no model"
    assert TOLD["context_aware"]["roles"][1]["kind"] == "context"
