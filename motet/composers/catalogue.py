"""What there is to compose with, as data: every strategy's own words, fields and cost, for programs that offer them.

All of it is read off the strategies' files: the module's first line is the summary, the class's docstring holds the
formula and the papers, the texts under the fields are their meaning. A strategy that is added there is described here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from motet.composers.errors import CompositionError
from motet.composers.exits import Depth
from motet.composers.plan import Plan
from motet.composers.roles import Context, Reading, Spec, field_names, named_models
from motet.composers.spec import ROOT, build_plan, parse_composition, strategy_kinds
from motet.composers.strategies import STRATEGIES
from motet.composers.strategies.rule_strategy import RuleStrategy
from motet.composers.strategies.strategy import Strategy
from motet.settings import models_in

SHALLOW = Depth(1)  # of an example's base: what it has of layers, every model has
BASE = "base"  # the model of an example's base; other roles are played by models of their own names
# (Title, Authors 2022, arXiv:2210.15097), or the title before the parenthesis
CITATION = re.compile(r"\((?:([^(),]+), )?([^(),]+ \d{4})(?:, arXiv:(\d{4}\.\d{5}))?\)")
Json = dict[str, Any]


@dataclass(frozen=True)
class Paper:
    """Where a strategy comes from; `title` None where the strategy's text names the authors alone."""

    title: str | None
    authors: str
    arxiv: str | None

    def described(self) -> Json:
        url = None if self.arxiv is None else f"https://arxiv.org/abs/{self.arxiv}"
        return {"title": self.title, "authors": self.authors, "arxiv": self.arxiv, "url": url}


@cache
def catalogue() -> tuple[Json, ...]:
    """Every strategy described, in the order in which the documentation has them, `compose` last."""
    return tuple(described(name, kind) for name, kind in strategy_kinds().items())


def described(name: str, kind: type[Strategy]) -> Json:
    """One strategy: texts, fields, the strength (`neutral`: its value that leaves the base as it is) and the cost."""
    formula, _, details = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return {
        "id": name,
        "object": "strategy",
        "summary": _summary(kind),
        "formula": " ".join(formula.split()),
        "description": " ".join(details.split()),
        "papers": [paper.described() for paper in papers(details)],
        **fields(kind),
        "stackable": name in stackable(),
        "strength": _strength(kind),
        "partners": kind.partners and list(kind.partners),
        "cost": cost(kind),
    }


def stackable() -> list[str]:
    """The strategies whose shifts can be added."""
    return [name for name, kind in STRATEGIES.items() if not issubclass(kind, RuleStrategy)]


def _summary(kind: type[Strategy]) -> str:
    """What the strategy's own file begins with; a stack, which has none, says it behind its formula."""
    if kind in STRATEGIES.values():
        return (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]
    words = (kind.__doc__ or "").partition("\n")[0].partition("`: ")[2]
    return words[:1].upper() + words[1:]


def papers(text: str) -> list[Paper]:
    """The papers that a docstring cites: `Title (Authors 2024, arXiv:2401.08565)`."""
    text = " ".join(text.split())
    return [Paper(cited[1] or _title(text[: cited.start()]), cited[2], cited[3]) for cited in CITATION.finditer(text)]


def _title(before: str) -> str | None:
    """The last sentence, unless it speaks of fields."""
    sentence = before.rpartition(". ")[2].strip()
    return sentence if sentence and "`" not in sentence else None


@cache
def fields(kind: type[Spec]) -> Json:
    """The fields that a client writes, `strategy` left out.

    `roles` hold models (`kind` "model") or another text for the base to read ("context"); `parameters` are described by
    JSON schema's own words; `groups` are objects, or lists of them, with roles and parameters of their own.
    """
    schema = kind.model_json_schema()
    found: Json = {"roles": [], "parameters": [], "groups": []}
    for attribute, name in field_names(kind).items():
        written = schema["properties"][name]
        if "const" in written or name in Reading.model_fields or name == "model":
            continue
        inner = [cls for cls in models_in(kind.model_fields[attribute].annotation) if issubclass(cls, Spec)]
        required = name in schema.get("required", ())
        about = {"name": name, "description": written.get("description", ""), "required": required}
        about |= {"examples": written["examples"]} if inner and "examples" in written else {}
        if not inner:
            default = kind.model_fields[attribute].get_default(call_default_factory=True) if not required else None
            found["parameters"].append(about | {"default": default} | _typed(written))
        else:
            place, entry = _entry(inner[0], _is_many(written))
            found[place].append(about | entry)
    return found


def _entry(inner: type[Spec], many: bool) -> tuple[str, Json]:
    """Where a field of objects belongs, and what is said of it."""
    if issubclass(inner, Strategy):
        return "groups", {"many": many, "strategies": stackable(), "roles": [], "parameters": []}
    own = fields(inner)
    if issubclass(inner, Reading):
        kind = "context" if issubclass(inner, Context) else "model"
        return "roles", {"kind": kind, "many": many, "parameters": own["parameters"]}
    parameters = [*own["parameters"], *map(_whole, own["groups"])]
    return "groups", {"many": many, "strategies": None, "roles": own["roles"], "parameters": parameters}


def _whole(group: Json) -> Json:
    """Objects inside of a group's, told as one value."""
    about = {name: value for name, value in group.items() if name in ("name", "description", "required", "examples")}
    return about | {"default": None, "nullable": True, "type": "array" if group["many"] else "object"}


def _is_many(written: Mapping[str, Any]) -> bool:
    return any(option.get("type") == "array" for option in _options(written))


def _options(written: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return written.get("anyOf", [written])


def _typed(written: Mapping[str, Any]) -> Json:
    """JSON schema's keywords; null is told by `nullable`, a single form stands beside the name."""
    options = [option for option in _options(written) if option.get("type") != "null"]
    nullable = len(options) < len(_options(written))
    said: Mapping[str, Any] = options[0] if len(options) == 1 else {"anyOf": options}
    said = dict(said) | {key: written[key] for key in ("examples",) if key in written}
    return {"nullable": nullable} | {key: said[key] for key in said if key not in ("title", "description", "default")}


def example(kind: type[Strategy], **more: Any) -> Json | None:
    """The shortest composition of a strategy that is one, its roles played by models that are called as they are.

    Args:
        more: fields that it must have.
    """
    told = fields(kind)
    required = _required(told) | more
    optional = {role["name"]: _player(role) for role in told["roles"] if role["kind"] == "model"} | required
    defaults = {p["name"]: p["default"] for p in told["parameters"] if p["default"] not in (None, {})} | required
    name = next(name for name, known in strategy_kinds().items() if known is kind)
    tries = ({"strategy": name, **body} for body in (required, optional, defaults))
    return next((body for body in tries if plan_of(body) is not None), None)


def _required(told: Json) -> Json:
    filled = {role["name"]: _player(role) for role in told["roles"] if role["required"]}
    filled |= {own["name"]: own["examples"][0] for own in told["parameters"] if own["required"] and "examples" in own}
    return filled | {group["name"]: [_item(group, 1)] for group in told["groups"] if group["required"]}


def _player(role: Json, number: int = 1) -> Any:
    """Whoever plays a role in an example, `number` of them where it is a list; of one that must be there the base is
    the first."""
    if role["kind"] == "context":
        return {"prompt": ""}
    if not role["many"]:
        return BASE if role["name"] == BASE else f"{role['name']}-{number}"
    names = [f"{role['name']}-{i + 1}" for i in range(number)]
    return [BASE, *names[1:]] if role["required"] else names


def _item(group: Json, number: int) -> Json:
    """An entry of a group; each has players of its own."""
    if group["strategies"] is None:
        return {role["name"]: _player(role, number) for role in group["roles"]}
    name = group["strategies"][0]
    part = fields(STRATEGIES[name])
    return {"strategy": name} | {role["name"]: _player(role, number) for role in part["roles"] if role["required"]}


def plan_of(body: Json) -> Plan | None:
    """The plan of an example, None where it is none."""
    try:
        composition = parse_composition(body)
        known = {BASE, *(name for _, name in named_models(composition, ROOT))}
        return build_plan(composition, BASE, known=known, token_id=lambda _: None, depth=SHALLOW)
    except CompositionError:
        return None


def cost(kind: type[Strategy]) -> Json | None:
    """Forwards per token of the shortest composition, over how many models, and what one more entry of each list adds:
    counted in the plans. Two forwards of one model are two rows of one batch."""
    shortest = example(kind)
    plan = plan_of(shortest) if shortest is not None else None
    if plan is None:
        return None
    told = fields(kind)
    lists = [role for role in told["roles"] if role["many"]] + [group for group in told["groups"] if group["many"]]
    each = {entry["name"]: added for entry in lists if (added := _added(kind, entry)) is not None}
    models = len({stream.model for stream in plan.streams})
    return {"forwards": len(plan.readers), "models": models, "per_entry": each}


def _added(kind: type[Strategy], entry: Json) -> int | None:
    """Forwards that a second entry of a list adds."""
    counts: list[int] = []
    for number in (1, 2):
        value = _player(entry, number) if "kind" in entry else [_item(entry, i + 1) for i in range(number)]
        body = example(kind, **{entry["name"]: value})
        plan = plan_of(body) if body is not None else None
        if plan is None:
            return None
        counts.append(len(plan.readers))
    return counts[1] - counts[0]


def _strength(kind: type[Strategy]) -> Json | None:
    """The parameter that scales the whole shift, and where it leaves the base as it is: at 1 where the plan of 1 is the
    base alone (guidance), else at 0."""
    if kind.strength is None:
        return None
    body = example(kind, **{kind.strength: 1.0})
    plan = plan_of(body) if body is not None else None
    return {"parameter": kind.strength, "neutral": float(plan is not None and len(plan.streams) == 1)}


def roles_of(told: Json) -> list[str]:
    """Names of all roles that models play, those in groups included."""
    own = [role["name"] for role in told["roles"] if role["kind"] == "model"]
    return own + [role["name"] for group in told["groups"] for role in group["roles"] if role["name"] not in own]
