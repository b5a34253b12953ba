"""Experts in compositions: where they belong, and against whom."""

from __future__ import annotations

from typing import Any

import pytest

from motet.composers.spec import parse_composition
from motet.experts.bundle import ExpertBundle
from motet.experts.fit import Known, misfits

SMALL, OTHER, LARGE = "1" * 64, "2" * 64, "3" * 64


def expert(name: str, partner: str | None = SMALL, family: str | None = None, **fields: Any) -> Known:
    card = {"name": name, "objective": "sft", "tokenizer_fingerprint": "0" * 64, "vocab_size": 7, "base_family": family}
    reference = {"partner": {"path": "small", "weights": partner}}
    return Known(ExpertBundle.model_validate(card | reference | fields), "a" * 64)


KNOWN = {
    "large": Known(weights=LARGE),
    "small": Known(weights=SMALL),
    "other": Known(weights=OTHER),
    "unknown": Known(),
    "chat": expert("chat", strategy="proxy_tuning"),
    "loose": expert("loose", partner=None),
    "alone": Known(expert("alone").bundle.model_copy(update={"partner": None}), OTHER),  # type: ignore[union-attr]
    "forgets": expert("forgets", partner=LARGE, strategy="unlearn", role="assistant"),
    "classes": expert("classes", partner=None, strategy="discriminator", role="wanted"),
    "kin": expert("kin", partner=None, family="f"),
    "cousin": expert("cousin", partner=None, family="g"),
}


def wrong(composition: dict[str, Any], base: str | None = "large") -> list[str]:
    return [misfit.path for misfit in misfits(parse_composition(composition), base, KNOWN)]


def proxy(expert: str, antiexpert: str, strategy: str = "proxy_tuning") -> dict[str, Any]:
    return {"strategy": strategy, "expert": expert, "antiexpert": antiexpert}


def test_roles_whose_names_are_words_of_the_language() -> None:
    """`with` is a field `with_`."""
    assert wrong({"strategy": "divergence", "base": "large", "with": "chat", "without": "small"}) == []
    assert wrong({"strategy": "divergence", "base": "large", "with": "chat", "without": "other"}) == [
        "composition.without"
    ]


@pytest.mark.parametrize("strategy", ["proxy_tuning", "dynamic", "budget"])
def test_the_partner_is_told_by_its_weights(strategy: str) -> None:
    assert wrong(proxy("chat", "small", strategy)) == []
    assert wrong(proxy("chat", "other", strategy)) == ["composition.antiexpert"]
    assert wrong(proxy("chat", "unknown", strategy)) == [], "nothing is known against it"
    assert wrong(proxy("chat", "never-heard-of", strategy)) == []
    assert wrong(proxy("loose", "other", strategy)) == [], "the bundle has no fingerprint of its partner"
    assert wrong(proxy("alone", "other", strategy)) == [], "the bundle names no partner"


def test_base_families_where_fingerprints_are_missing() -> None:
    assert wrong(proxy("kin", "cousin")) == ["composition.antiexpert"]
    assert wrong(proxy("kin", "kin")) == []
    assert wrong(proxy("kin", "chat")) == [], "it names no family"


def test_one_of_several_traits() -> None:
    traits = [{"tuned": "chat", "reference": "small"}, {"tuned": "chat", "reference": "other"}]
    assert wrong({"strategy": "eft", "traits": traits}) == ["composition.traits.1.reference"]
    assert wrong({"strategy": "eft", "tuned": "chat", "reference": "other"}) == ["composition.reference"]


def test_one_part_of_a_stack() -> None:
    stack = {"compose": [proxy("chat", "small"), {"strategy": "eft", "tuned": "chat", "reference": "other"}]}
    assert wrong(stack) == ["composition.compose.1.reference"]


def test_an_expert_as_the_base() -> None:
    novelty = {"strategy": "novelty", "untuned": "other"}
    assert wrong(novelty, "chat") == ["composition.untuned"]
    assert wrong(novelty | {"untuned": "small"}, "chat") == []
    assert wrong(novelty | {"base": "chat"}, None) == ["composition.untuned"]


def test_an_assistant_and_its_target() -> None:
    unlearn = {"strategy": "unlearn", "assistant": "forgets"}
    assert wrong(unlearn) == []
    assert wrong(unlearn, "other") == ["composition.base"]
    assert wrong(unlearn | {"assistant": "chat"}, "other") == [], "an expert made for another role has no target"


def test_one_class_conditional_model_stands_for_both_classes() -> None:
    roles = {role: {"model": "classes", "prompt": f"{role}:"} for role in ("wanted", "unwanted")}
    assert wrong({"strategy": "discriminator", **roles}) == []


def test_roles_of_the_recommended_strategy() -> None:
    assert wrong(proxy("unknown", "chat")) == ["composition.antiexpert"]
    assert wrong(proxy("alone", "chat")) == [], "the partner of another expert stands where that expert wants it"
    assert wrong(proxy("other", "small"), "chat") == [], "any model may be the base"
    assert wrong({"strategy": "contrastive", "amateur": "chat"}) == [], "the bundle speaks of one strategy only"
    assert wrong({"strategy": "experts", "antiexpert": ["chat", "small"]}) == []
