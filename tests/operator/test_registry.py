"""Names and compositions of a request → a plan, or a refusal; never anything else."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.composers.plan import single
from motet.composers.spec import CompositionError, composition_schema, parse_composition, strategy_names
from motet.operator.registry import Registry, UnknownModel
from motet.server.http.errors import ApiError
from motet.server.prepare import plan_of
from motet.server.shapes.requests import Target
from tests.server.conftest import make_service

REGISTRY: Registry = make_service().registry
MODELS = list(REGISTRY.members)


def field_names(schema: Any) -> set[str]:
    """All property names anywhere in a JSON schema."""
    if isinstance(schema, list):
        return {name for item in cast("list[Any]", schema) for name in field_names(item)}
    if not isinstance(schema, dict):
        return set()
    parts = cast("dict[str, Any]", schema)
    own = set(cast("dict[str, Any]", parts.get("properties", {})))
    return own | {name for value in parts.values() for name in field_names(value)}


FIELDS = sorted(field_names(composition_schema()))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(MODELS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def random_compositions(draw: st.DrawFn) -> dict[str, Any]:
    fields = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
    return {**fields, "strategy": draw(st.sampled_from(strategy_names()))}


PLAUSIBLE = st.fixed_dictionaries(
    {"strategy": st.sampled_from(["proxy_tuning", "eft", "contrastive", "experts", "guidance", "unlearn"])},
    optional={
        name: st.sampled_from([*MODELS[:4], {"model": "small", "prompt": ""}, {"model": "expert", "template": "chat"}])
        for name in ("expert", "antiexpert", "tuned", "reference", "amateur", "assistant")
    },
)


@given(random_compositions() | PLAUSIBLE, st.sampled_from([*MODELS, None]), st.booleans())
def test_random_compositions(composition: dict[str, Any], model: str | None, chat: bool) -> None:
    target = Target.model_construct(model=model, composition=composition)
    try:
        plan = plan_of(target, REGISTRY, chat=chat)
    except (ApiError, CompositionError, UnknownModel):
        return
    assert {stream.model for stream in plan.streams} <= set(MODELS)


def test_plain_model() -> None:
    assert REGISTRY.plan("small") == single("small")


def test_a_composition_may_name_its_base_without_a_model() -> None:
    composition = {"strategy": "contrastive", "base": "large", "amateur": "small"}
    plan = REGISTRY.plan(None, parse_composition(composition))
    assert [stream.model for stream in plan.streams] == ["large", "small"]


def test_named_plans_are_built_once() -> None:
    assert REGISTRY.named("large-proxy") is REGISTRY.named("large-proxy")


def test_unlike_vocabularies_are_named() -> None:
    composition = {"strategy": "contrastive", "base": "large", "amateur": "stranger"}
    with pytest.raises(CompositionError, match="'zz'") as refusal:
        REGISTRY.plan(None, parse_composition(composition))
    assert refusal.value.code == "vocabulary_mismatch"


def test_tokenizer_endpoints_use_a_compositions_base() -> None:
    assert REGISTRY.member("large-proxy").info.name == "large"
    one_vocabulary = Registry({name: REGISTRY.members[name] for name in ("large", "small")})
    assert one_vocabulary.member(None).info.name == "large"


def test_no_model_is_guessed_among_several_vocabularies() -> None:
    with pytest.raises(CompositionError, match=r"vocabularies differ\. Models: large, small, expert") as refusal:
        REGISTRY.member(None)
    assert (refusal.value.param, refusal.value.code) == ("model", "missing_model")
