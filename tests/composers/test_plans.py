"""The plan of every strategy: which streams, with which weights, prompts, masks and gates; and stacking."""

from __future__ import annotations

from typing import Any

import pytest

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan, Prompt, RuleVector, Stream, TokenSet, single
from motet.composers.rules import BudgetRule, DiscriminatorRule, DynamicRule, MixtureRule, ReluRule, judged_tokens
from motet.composers.spec import build_plan, parse_composition

KNOWN = ("large", "small", "chat", "other")
PROXY: dict[str, Any] = {"strategy": "proxy_tuning", "expert": "chat", "antiexpert": "small"}


def plan_of(value: object, base: str | None = "large", **options: Any) -> Plan:
    return build_plan(parse_composition(value), base, known=KNOWN, token_id={" I": 7}.get, **options)


# composition → streams, masks
PLANS: list[tuple[dict[str, Any], tuple[Stream, ...], tuple[TokenSet, ...]]] = [
    (
        {**PROXY, "alpha": 0.5},
        (Stream("base", "large"), Stream("expert", "chat", 0.5), Stream("antiexpert", "small", -0.5)),
        (),
    ),
    (
        {"strategy": "eft", "tuned": "chat", "reference": "small", "beta": 2},
        (Stream("base", "large"), Stream("tuned", "chat", 2.0), Stream("reference", "small", -2.0)),
        (),
    ),
    (
        {"strategy": "eft", "tuned": "chat", "reference": "small", "top_p": 0.9},
        (
            Stream("base", "large"),
            Stream("tuned", "chat", 1.0, inside=TokenSet(1, "nucleus", 0.9)),
            Stream("reference", "small", -1.0, inside=TokenSet(1, "nucleus", 0.9)),
        ),
        (),
    ),
    (
        {
            "strategy": "eft",
            "traits": [
                {"tuned": "chat", "reference": "small"},
                {"tuned": "other", "reference": "small", "beta": 0.25, "top_p": 0.5},
            ],
        },
        (
            Stream("base", "large"),
            Stream("tuned", "chat", 1.0),
            Stream("reference", "small", -1.0),
            Stream("tuned_2", "other", 0.25, inside=TokenSet(3, "nucleus", 0.5)),
            Stream("reference_2", "small", -0.25, inside=TokenSet(3, "nucleus", 0.5)),
        ),
        (),
    ),
    (
        {"strategy": "contrastive", "amateur": "small"},
        (Stream("base", "large", 1.5), Stream("amateur", "small", -0.5)),
        (TokenSet(0, "ratio", 0.1),),
    ),
    (
        {
            "strategy": "contrastive",
            "amateur": {"model": "small", "last_tokens": 1},
            "form": "original",
            "amateur_temperature": 0.5,
        },
        (
            Stream("base", "large", 1.0),
            Stream("amateur", "small", -1.0, Prompt(last_tokens=1), temperature=0.5),
        ),
        (TokenSet(0, "ratio", 0.1),),
    ),
    (
        {"strategy": "novelty", "untuned": "small", "lambda": 0.75, "alpha": None},
        (Stream("base", "large"), Stream("untuned", "small", -0.75)),
        (),
    ),
    (
        {"strategy": "unlearn", "assistant": "small"},
        (Stream("base", "large"), Stream("assistant", "small", -0.8)),
        (TokenSet(0, "rank_or_ratio", 1e-2),),
    ),
    (
        {"strategy": "context_aware", "without": {"prompt": ""}, "alpha": -0.5},
        (Stream("base", "large", 0.5), Stream("without", "large", 0.5, Prompt(""))),
        (),
    ),
    (
        {"strategy": "guidance", "scale": 3},
        (Stream("base", "large", 3.0), Stream("unconditional", "large", -2.0, Prompt(last_tokens=1))),
        (),
    ),
    (
        {"strategy": "guidance", "unconditional": {"messages": [{"role": "system", "content": "Be rude."}]}},
        (
            Stream("base", "large", 1.5),
            Stream("unconditional", "large", -0.5, Prompt(messages=(("system", "Be rude."),))),
        ),
        (),
    ),
    (
        {"strategy": "experts", "expert": ["chat", "other"], "antiexpert": ["small", "small"], "alpha": [2, 0.5]},
        (
            Stream("base", "large"),
            Stream("expert", "chat", 2.0),
            Stream("expert_2", "other", 0.5),
            Stream("antiexpert", "small", -2.5),
        ),
        (TokenSet(0, "nucleus", 0.9),),
    ),
    (
        {"strategy": "experts", "antiexpert": ["small", "other"], "alpha": [2, 0.5]},
        (Stream("base", "large", 3.5), Stream("antiexpert", "small", -2.0), Stream("antiexpert_2", "other", -0.5)),
        (TokenSet(0, "nucleus", 0.9),),
    ),
    (
        {"strategy": "experts", "expert": ["chat", "other"], "antiexpert": "small", "alpha": 0.25, "top_p": 1},
        (
            Stream("base", "large", 0.75),
            Stream("expert", "chat", 0.25),
            Stream("expert_2", "other", 0.25),
            Stream("antiexpert", "small", -0.25),
        ),
        (),
    ),
    (
        {"strategy": "product", "members": [{"model": "small", "weight": 0.25}, {"model": "large", "weight": 0.75}]},
        (Stream("base", "large", 0.75), Stream("member_1", "small", 0.25)),
        (),
    ),
]


@pytest.mark.parametrize(("value", "streams", "masks"), PLANS)
def test_streams_and_masks(value: dict[str, Any], streams: tuple[Stream, ...], masks: tuple[TokenSet, ...]) -> None:
    assert plan_of(value) == Plan(streams, masks, None, value["strategy"])


def test_rules_resolve_texts_and_ids() -> None:
    value = {
        "strategy": "rules",
        "eos_ramp": {"tokens": 250, "weight": 15},
        "repetition": 1.5,
        "token_offsets": {" I": -4, "id:3": 2, "id:7": 1},
    }
    plan = plan_of(value)
    assert plan.streams == (Stream("base", "large"),)
    assert plan.rules == RuleVector(250, 15.0, 1.5, ((7, -3.0), (3, 2.0)))


@pytest.mark.parametrize(
    "value",
    [
        {**PROXY, "alpha": 0},
        {**PROXY, "antiexpert": "chat"},
        {"strategy": "eft", "tuned": "chat", "reference": "small", "beta": 0, "top_p": 0.5},
        {"strategy": "eft", "tuned": "chat", "reference": "chat", "top_p": 0.5},
        {"strategy": "context_aware", "without": {"prompt": ""}, "alpha": 0},
        {"strategy": "guidance", "scale": 1},
        {"strategy": "experts", "expert": "chat", "antiexpert": "chat", "alpha": 3, "top_p": 1},
        {"strategy": "novelty", "untuned": "small", "lambda": 0, "alpha": None},
        {"strategy": "unlearn", "assistant": "small", "weight": 0, "filter": None},
        {"strategy": "product", "members": ["large"]},
        {"compose": [PROXY, {**PROXY, "alpha": -1}]},
        {"compose": [{**PROXY, "alpha": 0.1}, {**PROXY, "alpha": 0.2}, {**PROXY, "alpha": -0.3}]},
    ],
)
def test_what_cancels_costs_no_stream(value: dict[str, Any]) -> None:
    assert plan_of(value).streams == single("large").streams


def test_base_that_cancels_stays_as_the_reference() -> None:
    plan = plan_of({**PROXY, "antiexpert": "large"})
    assert plan.streams == (Stream("base", "large", 0.0), Stream("expert", "chat", 1.0))


def test_cancelled_stream_stays_where_a_gate_reads_it() -> None:
    gated = {"strategy": "eft", "tuned": "chat", "reference": "small", "top_p": 0.5}
    plan = plan_of({"compose": [gated, {**gated, "tuned": "small", "reference": "other", "beta": -1}]})
    inside_chat, inside_small = TokenSet(1, "nucleus", 0.5), TokenSet(2, "nucleus", 0.5)
    assert plan.streams == (
        Stream("base", "large"),
        Stream("tuned", "chat", 1.0, inside=inside_chat),
        Stream("reference", "small", -1.0, inside=inside_chat),
        Stream("tuned_2", "small", -1.0, inside=inside_small),
        Stream("reference_2", "other", 1.0, inside=inside_small),
    )


def test_mask_only_stream_has_weight_0() -> None:
    """The gated term of the tuned model cancels, its reference does not: the gate still needs the tuned model."""
    trait = {"tuned": "chat", "reference": "small", "top_p": 0.5}
    plan = plan_of(
        {"strategy": "eft", "traits": [trait, {**trait, "reference": "other", "beta": -1}]},
    )
    gate = TokenSet(3, "nucleus", 0.5)
    assert plan.streams == (
        Stream("base", "large"),
        Stream("reference", "small", -1.0, inside=gate),
        Stream("reference_2", "other", 1.0, inside=gate),
        Stream("tuned", "chat", 0.0),
    )


def test_temperatures_are_streams_of_their_own_and_sets_are_read_at_1() -> None:
    """A stream at another temperature is another term; a set reads any stream of its model, at temperature 1."""
    amateur = {"strategy": "contrastive", "amateur": "chat", "amateur_temperature": 0.5, "form": "original"}
    trait = {"tuned": "chat", "reference": "small", "top_p": 0.5}
    gated = {"strategy": "eft", "traits": [trait, {**trait, "reference": "other", "beta": -1}]}
    gate = TokenSet(1, "nucleus", 0.5)
    assert plan_of({"compose": [amateur, gated]}).streams == (
        Stream("base", "large"),
        Stream("amateur", "chat", -1.0, temperature=0.5),
        Stream("reference", "small", -1.0, inside=gate),
        Stream("reference_2", "other", 1.0, inside=gate),
    )
    assert plan_of({"compose": [amateur, PROXY]}).streams == (
        Stream("base", "large"),
        Stream("amateur", "chat", -1.0, temperature=0.5),
        Stream("expert", "chat", 1.0),
        Stream("antiexpert", "small", -1.0),
    )


def test_top_p_of_1_is_off() -> None:
    assert plan_of({"strategy": "experts", "expert": "chat", "top_p": 1}).masks == ()
    plan = plan_of({"strategy": "eft", "tuned": "chat", "reference": "small", "top_p": 1})
    assert all(stream.inside is None for stream in plan.streams)


def test_stack_adds_shifts_masks_and_rules() -> None:
    plan = plan_of(
        {
            "compose": [
                {"strategy": "unlearn", "assistant": "small"},
                PROXY,
                {"strategy": "contrastive", "amateur": "other"},
                {"strategy": "contrastive", "amateur": "other"},
                {"strategy": "rules", "repetition": 1, "token_offsets": {"id:1": 1, "id:2": 1}},
                {"strategy": "rules", "eos_ramp": {"tokens": 5, "weight": 1}, "token_offsets": {"id:1": 2}},
                {"strategy": "rules", "eos_ramp": {"tokens": 5, "weight": 2}, "repetition": 0.5},
            ]
        }
    )
    assert plan.streams == (
        Stream("base", "large", 2.0),
        Stream("assistant", "small", -1.8),
        Stream("expert", "chat", 1.0),
        Stream("amateur", "other", -1.0),
    )
    assert plan.masks == (TokenSet(0, "rank_or_ratio", 1e-2), TokenSet(0, "ratio", 0.1))
    assert plan.rules == RuleVector(5, 3.0, 1.5, ((1, 3.0), (2, 1.0)))
    assert plan.strategy == "compose"
    assert plan.weight_sum == pytest.approx(0.2)


def test_same_model_with_another_prompt_is_another_stream() -> None:
    plan = plan_of({**PROXY, "expert": {"model": "large", "prompt": "Be helpful."}, "antiexpert": "large"})
    assert plan.streams == (
        Stream("base", "large", 0.0),
        Stream("expert", "large", 1.0, Prompt("Be helpful.")),
    )


def test_role_prompts() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    plan = plan_of(
        {
            "strategy": "proxy_tuning",
            "base": {"template": "plain"},
            "expert": {"model": "chat", "messages": messages, "template": "chat", "last_tokens": 8},
            "antiexpert": {"model": "small", "prompt": ""},
        }
    )
    assert [stream.prompt for stream in plan.streams] == [
        Prompt(template="plain"),
        Prompt(messages=(("user", "Hello"),), template="chat", last_tokens=8),
        Prompt(""),
    ]


def test_second_context_of_the_base_takes_its_template() -> None:
    """Else the two contexts would differ in their form and not only in what they say."""
    base = {"model": "large", "template": "plain"}
    without = {"messages": [{"role": "user", "content": "Q"}]}
    expected = Prompt(messages=(("user", "Q"),), template="plain")
    assert plan_of({"strategy": "context_aware", "base": base, "without": without}).streams[1].prompt == expected
    assert plan_of({"strategy": "guidance", "base": base, "unconditional": without}).streams[1].prompt == expected
    negative = plan_of({"strategy": "guidance", "base": base, "negative_prompt": "Q"}, chat=True)
    assert negative.streams[1].prompt == expected
    default = plan_of({"strategy": "guidance", "base": base})
    assert default.streams[1].prompt == Prompt(template="plain", last_tokens=1)


def test_negative_prompt_is_a_message_in_a_chat_and_text_elsewhere() -> None:
    value = {"strategy": "guidance", "negative_prompt": "Be rude."}
    assert plan_of(value, chat=True).streams[1].prompt == Prompt(messages=(("user", "Be rude."),))
    assert plan_of(value, chat=False).streams[1].prompt == Prompt("Be rude.")


def test_base_by_field_or_by_request() -> None:
    assert plan_of({**PROXY, "base": "large"}, base=None) == plan_of(PROXY, base="large")
    assert plan_of({**PROXY, "base": "large"}, base="large") == plan_of(PROXY, base="large")
    assert plan_of({"compose": [{**PROXY, "base": "large"}]}, base=None).streams == plan_of(PROXY).streams


def test_product_takes_its_base_among_the_members() -> None:
    members = ["small", {"model": "large", "prompt": "A"}, {"model": "large", "prompt": "B"}]
    value = {"strategy": "product", "members": members}
    assert plan_of(value, base="large").streams[0] == Stream("base", "large", 1.0, Prompt("A"))
    assert plan_of(value, base=None).streams[0] == Stream("base", "small", 1.0)
    chosen = plan_of({**value, "base": {"model": "large", "prompt": "B"}}, base=None)
    assert chosen.streams == (
        Stream("base", "large", 1.0, Prompt("B")),
        Stream("member_1", "small", 1.0),
        Stream("member_2", "large", 1.0, Prompt("A")),
    )


def test_product_inside_a_stack() -> None:
    product = {"strategy": "product", "members": [{"model": m, "weight": 0.5} for m in ("large", "small")]}
    assert plan_of({"compose": [product, PROXY]}).streams == (
        Stream("base", "large", 0.5),
        Stream("member_2", "small", -0.5),
        Stream("expert", "chat", 1.0),
    )


def test_product_member_of_weight_0_is_a_reference_only() -> None:
    value = {"strategy": "product", "members": [{"model": "large", "weight": 0}, "small"]}
    assert plan_of(value).streams == (Stream("base", "large", 0.0), Stream("member_2", "small", 1.0))


RULE_PLANS: list[tuple[dict[str, Any], Plan]] = [
    (
        {"strategy": "generic", "reinforced": "chat", "alpha": 2},
        Plan((Stream("base", "large"), Stream("reinforced", "chat", 0.0)), strategy="generic", rule=ReluRule(2.0)),
    ),
    (
        {"strategy": "mixture", "members": [{"model": "small", "weight": 0.25}, {"model": "large", "weight": 0.75}]},
        Plan(
            (Stream("base", "large", 0.75), Stream("member_1", "small", 0.25)), strategy="mixture", rule=MixtureRule()
        ),
    ),
    (
        {"strategy": "dynamic", "expert": "chat", "antiexpert": "small", "symmetric": True},
        Plan(
            (Stream("base", "large"), Stream("expert", "chat"), Stream("antiexpert", "small", -1.0)),
            strategy="dynamic",
            rule=DynamicRule(2.0, symmetric=True),
        ),
    ),
    (
        {
            "strategy": "dynamic",
            "pairs": [
                {"expert": "chat", "antiexpert": "small", "weight": 0.5},
                {"expert": "other", "antiexpert": "small", "weight": -0.25},
            ],
        },
        Plan(
            (
                Stream("base", "large"),
                Stream("expert", "chat", 0.5),
                Stream("antiexpert", "small", -0.5),
                Stream("expert_2", "other", -0.25),
                Stream("antiexpert_2", "small", 0.25),
            ),
            strategy="dynamic",
            rule=DynamicRule(),
        ),
    ),
    (
        {"strategy": "budget", "expert": "chat", "antiexpert": "small", "epsilon": 0.1},
        Plan(
            (Stream("base", "large"), Stream("expert", "chat"), Stream("antiexpert", "small", -1.0)),
            strategy="budget",
            rule=BudgetRule(0.1),
        ),
    ),
    (
        {"strategy": "discriminator", "wanted": {"model": "small", "prompt": "kind"}, "unwanted": "small"},
        Plan(
            (
                Stream("base", "large"),
                Stream("wanted", "small", 0.0, Prompt(text="kind")),
                Stream("unwanted", "small", 0.0),
            ),
            strategy="discriminator",
            rule=DiscriminatorRule(),
        ),
    ),
]


@pytest.mark.parametrize(("value", "plan"), RULE_PLANS, ids=[value["strategy"] for value, _ in RULE_PLANS])
def test_plans_of_rules(value: dict[str, Any], plan: Plan) -> None:
    assert plan_of(value) == plan


@pytest.mark.parametrize("side", ["expert", "antiexpert"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0])
def test_the_base_stands_for_a_missing_side(side: str, alpha: float) -> None:
    """As when it is named, and the weights sum to 1: members that agree with the base change nothing."""
    other = "antiexpert" if side == "expert" else "expert"
    lone: dict[str, Any] = {"strategy": "experts", side: ["chat", "small"], "alpha": alpha}
    assert plan_of(lone).streams == plan_of({**lone, other: ["large", "large"]}).streams
    assert plan_of(lone).weight_sum == 1.0


def test_what_gedi_judges_is_what_both_classes_read() -> None:
    assert judged_tokens((1, 5, 6, 7), (2, 5, 6, 7)) == 3
    assert judged_tokens((1, 2, 5, 6), (3, 5, 6)) == 2
    assert judged_tokens((5, 6, 7), (5, 6, 7)) == 2  # nothing predicts the first
    assert judged_tokens((9, 5, 6), (5, 6)) == 1
    assert judged_tokens((1, 2), (1, 3)) == 0
    assert judged_tokens((1,), (1, 1)) == 0


@pytest.mark.parametrize("value", [value for value, _ in RULE_PLANS], ids=lambda value: value["strategy"])
def test_a_rule_cannot_be_stacked(value: dict[str, Any]) -> None:
    with pytest.raises(CompositionError) as caught:
        plan_of({"compose": [PROXY, value]})
    assert caught.value.param == "composition.compose.1"
    assert "cannot be stacked: its score is no sum of shifts" in caught.value.message


def test_the_base_of_a_mixture_is_a_member() -> None:
    with pytest.raises(CompositionError, match="the base 'other' is not a member; members: small, chat"):
        plan_of({"strategy": "mixture", "members": ["small", "chat"], "base": "other"}, None)
