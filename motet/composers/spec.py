"""A composition as a client writes it → a plan.

    composition = parse_composition({"strategy": "proxy_tuning", "expert": "small-chat", "antiexpert": "small"})
    plan = build_plan(composition, "large", known=names, token_id=token_id)

Every strategy is a shift on a base, so stacking (`compose`) is the sum of the shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from motet.composers.errors import (
    MAX_PROBLEMS,
    MAX_SHOWN,
    CompositionError,
    allowed_names,
    explain,
    refusal,
    show,
)
from motet.composers.exits import Depth
from motet.composers.plan import Plan
from motet.composers.roles import MAX_PARTS, Reading, Spec, Voice, field_names, named_models
from motet.composers.rules import BudgetRule
from motet.composers.shift import Shift, add_shifts
from motet.composers.strategies import STRATEGIES
from motet.composers.strategies.budget import Epsilon
from motet.composers.strategies.guidance import Guidance
from motet.composers.strategies.rule_strategy import Strength
from motet.composers.strategies.strategy import Request, Strategy
from motet.settings import children, models_in

ROOT = "composition"
MAX_VALUES = 1 << 15  # four conversations of 4,096 messages, the names of their fields not counted


def _union(*more: type[Strategy]) -> Any:
    """Discriminated on `strategy`, made from the one list of strategies."""
    return Annotated[Union[(*STRATEGIES.values(), *more)], Field(discriminator="strategy")]


if TYPE_CHECKING:
    Part = Strategy
else:
    Part = _union()


class Cap(Spec, frozen=True):
    """A trust region around the base."""

    epsilon: Epsilon = 0.5
    """Most that a token's distribution may move away from the base, as KL in nats."""
    alpha_max: Strength = 1.0
    """The largest strength α that may be chosen."""


class Compose(Strategy, frozen=True):
    """`z = L_base + α Σ shifts`: the parts' shifts are added onto one base, masks intersect, rules add.

    A part may repeat the base, but not name another one. Parts cannot be stacks themselves. α is 1; with a `budget` it
    is the largest for which `KL(p_α‖p_base) ≤ ε`, as in strategy `budget`, and the trace reports it. Masks and rules
    come afterwards and are not counted. A `schedule` here is that of the parts without one.
    """

    strategy: Literal["compose"] = "compose"
    compose: Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]
    """The strategies whose shifts are added."""
    budget: Cap | None = None
    """Most that the sum may move a token's distribution away from the base; left out, as far as it does."""

    def own_base(self, model: str | None) -> Voice | None:
        own = super().own_base(model)
        if own is not None:
            return own
        return next((base for part in self.compose if (base := part.own_base(model)) is not None), None)

    def shift(self, request: Request) -> Shift:
        shifts: list[Shift] = []
        for i, part in enumerate(self.compose):
            path = f"{request.path}.compose.{i}"
            if part.base is not None and part.own_base(request.base.model) != request.base:
                raise CompositionError(f"{path}.base: not the base of the whole composition", f"{path}.base")
            shifts.append(part.scheduled_shift(replace(request, path=path)))
        return add_shifts(shifts, request.path)

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        if self.budget is None:
            return plan
        if any(stream.inside is not None for stream in plan.streams):
            path = f"{request.path}.budget"
            raise CompositionError(f"{path}: a shift that `top_p` gates cannot be capped: leave its top_p out", path)
        return replace(plan, rule=BudgetRule(self.budget.epsilon, self.budget.alpha_max))


Composition = Strategy
_KINDS: dict[str, type[Strategy]] = {**STRATEGIES, "compose": Compose}


def strategy_names() -> tuple[str, ...]:
    """All values of `strategy`, `compose` included."""
    return tuple(_KINDS)


@cache
def strategy_fields() -> frozenset[str]:
    """Names of all fields that a composition of any strategy can have, as clients write them."""
    return frozenset(name for kind in _KINDS.values() for name in field_names(kind).values())


def strategy_kinds() -> Mapping[str, type[Strategy]]:
    """The classes of all values of `strategy`, `compose` last."""
    return _KINDS


def add_strategy(name: str, kind: type[Strategy]) -> None:
    """From now on compositions may be of this strategy, too, and stacks may hold it. Not safe beside other threads that
    read compositions: it is for the time before a server answers."""
    STRATEGIES[name] = kind
    _KINDS.clear()
    _KINDS.update({**STRATEGIES, "compose": Compose})
    Compose.model_fields["compose"].annotation = list[_union()]
    Compose.model_rebuild(force=True)
    strategy_fields.cache_clear()


def composition_schema() -> dict[str, Any]:
    """The JSON schema of a composition, for the OpenAPI description."""
    return TypeAdapter[Any](_union(Compose)).json_schema()


def parse_composition(value: object, *, strict: bool = True) -> Composition:
    """Validates what a client sent: a decoded JSON or YAML object.

    Args:
        strict: whether a number written as text is refused, as JSON has it; the environment has only texts.

    Raises:
        CompositionError: the message lists all problems, `param` is the path of the first.
    """
    if not isinstance(value, dict):
        raise CompositionError(f"{ROOT}: must be an object, got {show(value)}", ROOT)
    _check_size(cast("dict[object, object]", value))
    fields: dict[object, object] = {"strategy": "compose", **value} if "compose" in value else {**value}
    kind = _kind(fields)
    try:
        return kind.model_validate(fields, strict=None if strict else False)
    except ValidationError as error:
        raise _refusal(error, kind, fields) from None


def _check_size(value: dict[object, object]) -> None:
    """Raises CompositionError: more than `MAX_VALUES` values; pydantic would look for what is wrong with each."""
    level: list[object] = [value]
    count = 0
    while level:
        level = [child for item in level for child in children(item)]
        count += len(level)
        if count > MAX_VALUES:
            raise CompositionError(f"{ROOT}: holds more than {MAX_VALUES:,} values", ROOT)


def _kind(fields: dict[object, object]) -> type[Strategy]:
    name = fields.get("strategy")
    path = f"{ROOT}.strategy"
    if name is None:
        raise CompositionError(f"{path}: required; {allowed_names('allowed', '', _KINDS)}", path)
    if name == "gated":
        said = "gated compositions are the operator's: send the name of one as 'model' (GET /v1/models lists them)"
        raise CompositionError(f"{path}: {said}", path)
    if not isinstance(name, str) or name not in _KINDS:
        allowed = allowed_names("allowed", name if isinstance(name, str) else "", _KINDS)
        raise CompositionError(f"{path}: unknown strategy {show(name)}; {allowed}", path)
    return _KINDS[name]


def _refusal(error: ValidationError, kind: type[Strategy], sent: object) -> CompositionError:
    problems = error.errors(include_url=False)
    lines: list[tuple[str, str]] = []
    for problem in problems[:MAX_PROBLEMS]:
        owner = _owner(kind, problem["loc"])
        lines.append((_path(problem["loc"], sent), explain(problem, field_names(owner).values(), STRATEGIES)))
    return refusal(lines, len(problems))


def _path(loc: tuple[int | str, ...], sent: object) -> str:
    """Dotted path as the client wrote it: without the tags that the union puts after a position
    (compose.0.eft.tuned) and without the position of a single value where a list is allowed."""
    path = [ROOT]
    at: object = sent
    for before, part in zip((None, *loc), loc, strict=False):
        tag = isinstance(before, int) and part in STRATEGIES
        if not tag and (isinstance(part, str) or _is_list(at)):
            path.append(str(part)[:MAX_SHOWN])
            at = _inside(at, part)
    return ".".join(path)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _inside(value: object, part: int | str) -> object:
    if isinstance(value, dict):
        return cast("dict[object, object]", value).get(part)
    return cast("list[object]", value)[part] if isinstance(value, list) and isinstance(part, int) else None


def _owner(spec: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The class of the object that holds the last part of `loc`."""
    attributes = {name: attribute for attribute, name in field_names(spec).items()}
    for i, part in enumerate(loc[:-1]):
        if isinstance(part, str) and part in STRATEGIES:
            return _owner(STRATEGIES[part], loc[i + 1 :])
        if part in attributes:
            kinds = models_in(spec.model_fields[attributes[str(part)]].annotation)
            inner = next((kind for kind in kinds if issubclass(kind, Spec)), None)
            return spec if inner is None else _owner(inner, loc[i + 1 :])
    return spec


def build_plan(
    composition: Composition,
    base: str | None,
    *,
    known: Collection[str],
    token_id: Callable[[str], int | None],
    chat: bool = False,
    vocab_size: int | None = None,
    depth: Depth | None = None,
    threshold: float | None = None,
) -> Plan:
    """The plan of a composition.

    Args:
        composition: parsed.
        base: the request's `model`: the base of compositions that name none.
        known: names of the models that can be members.
        token_id: the id of a text that is exactly one token, else None (for `rules`).
        chat: the request has messages: `negative_prompt` is then a user message, else plain text.
        vocab_size: the shared width, where known: bounds the ids of `rules`.
        depth, threshold: the base's layers, and from where its head routes; no engine runs `layer_contrast` without.

    Raises:
        CompositionError: unknown models, no base, two different bases, and what only the request decides.
    """
    _check_models(composition, base, known)
    voice = composition.own_base(base) or (None if base is None else Voice(base))
    if voice is None:
        path = f"{ROOT}.base"
        raise CompositionError(f"{path}: required: neither the composition nor the request names one", path)
    request = Request(voice, token_id, chat, vocab_size, depth, ROOT, threshold)
    return composition.plan(request)


def _check_models(composition: Composition, base: str | None, known: Collection[str]) -> None:
    named = list(named_models(composition, ROOT))
    lines = [
        (path, f"unknown model {show(name)}; {allowed_names('known models', name, known)}")
        for path, name in [*([("model", base)] if base is not None else []), *named]
        if name not in known
    ]
    lines += [
        (path, f"{show(name)} is not the request's model {show(base)}: name one base")
        for path, name in named
        if path.endswith(".base") and base not in (None, name)
    ]
    if lines:
        raise refusal(lines, len(lines))


def describe(composition: Composition) -> dict[str, Any]:
    """The composition as JSON for model cards, defaults included; `parse_composition` reads it back."""
    described: dict[str, Any] = {}
    for attribute, name in field_names(type(composition)).items():
        value = getattr(composition, attribute)
        if value is not None or type(composition).model_fields[attribute].default is not None:
            described[name] = _plain(value)
    return described


def _plain(value: object) -> Any:
    if isinstance(value, Strategy):
        return describe(value)
    if isinstance(value, Reading):
        fields = value.model_dump(exclude_none=True, exclude_defaults=True)
        return fields["model"] if fields.keys() == {"model"} else fields
    if isinstance(value, Spec):
        return {name: _plain(item) for name, item in value if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[object]", value)]
    return value


def from_guidance_fields(guidance_scale: object, negative_prompt: object) -> Composition:
    """The composition of the request fields `guidance_scale` and `negative_prompt` (None: not given).

    Raises:
        CompositionError: `param` is the request field at fault.
    """
    given = {"scale": guidance_scale, "negative_prompt": negative_prompt}
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        return Guidance.model_validate(fields)
    except ValidationError as error:
        refusal = _refusal(error, Guidance, fields)
        message = refusal.message.replace(f"{ROOT}.scale", "guidance_scale")
        message = message.replace(f"{ROOT}.negative_prompt", "negative_prompt")
        raise CompositionError(message, message.partition(":")[0]) from None
