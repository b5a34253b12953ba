"""Compositions as clients write them: fields, defaults, and what is said about bad ones."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.composers.errors import CompositionError
from motet.composers.spec import (
    build_plan,
    composition_schema,
    describe,
    from_guidance_fields,
    parse_composition,
    strategy_names,
)
from motet.composers.strategies import STRATEGIES
from tests.composers.test_laws import example

KNOWN = ("large", "small", "small-chat")
ALL = ", ".join(sorted(strategy_names()))
PARTS = ALL.replace("compose, ", "")

# what clients may leave out, and what then holds: a published interface. A sum of shifts that is not here is tried as
# its case in test_laws writes it
MINIMAL: dict[str, dict[str, Any]] = {
    "proxy_tuning": {"expert": "small-chat", "antiexpert": "small"},
    "eft": {"tuned": "small-chat", "reference": "small"},
    "contrastive": {"amateur": "small"},
    "layer_contrast": {},
    "novelty": {"untuned": "small"},
    "unlearn": {"assistant": "small"},
    "divergence": {"without": "small", "with": "small-chat"},
    "causal": {"names": "Ada", "others": ["Bob", "Cy"]},
    "cascade": {"small": "small-chat"},
    "sparse": {"members": ["large", "small"]},
    "context_aware": {"without": {"prompt": "Q:"}},
    "hesitation": {},
    "guidance": {},
    "experts": {"antiexpert": "small"},
    "product": {"members": ["large", "small"]},
    "rules": {"repetition": 1.5},
    "mixture": {"members": ["large", "small"]},
    "generic": {"reinforced": "small"},
    "discriminator": {"wanted": {"model": "small", "prompt": "kind"}, "unwanted": "small"},
    "dynamic": {"expert": "small-chat", "antiexpert": "small"},
    "budget": {"expert": "small-chat", "antiexpert": "small"},
    "routed": {"assistant": "small"},
    "adaptive_temperature": {},
    "adapters": {"adapters": ["small", "small-chat"]},
    "compose": {"compose": [{"strategy": "unlearn", "assistant": "small"}, {"strategy": "guidance"}]},
}
ROLES = {"base": "large", "expert": "small-chat", "anti": "small", "other": "small"}
TRIED = MINIMAL | {name: example(name, **ROLES) for name in strategy_names() if name not in MINIMAL}

DEFAULTS: dict[str, dict[str, Any]] = {
    "proxy_tuning": {"expert": "small-chat", "antiexpert": "small", "alpha": 1.0},
    "eft": {"tuned": "small-chat", "reference": "small"},
    "contrastive": {"amateur": "small", "alpha": 0.1, "form": "reasoning", "amateur_temperature": 1.0},
    "layer_contrast": {"select": "divergence", "alpha": 1.0, "mask": 0.1, "form": "difference"},
    "novelty": {"untuned": "small", "lambda": 1.0, "alpha": 0.1},
    "unlearn": {"assistant": "small", "weight": 0.8, "filter": 1e-2},
    "divergence": {"without": "small", "with": "small-chat", "form": "linear"},
    "causal": {"names": ["Ada"], "others": [["Bob"], ["Cy"]]},
    "cascade": {"small": "small-chat", "measure": "max_prob", "per": "token"},
    "sparse": {"members": ["large", "small"], "agreement": 0.5},
    "context_aware": {"without": {"prompt": "Q:"}, "alpha": 0.5},
    "hesitation": {"alpha": 1.6, "share": 0.04, "mask": 0.1},
    "guidance": {"scale": 1.5},
    "experts": {"antiexpert": ["small"], "alpha": [1.0], "top_p": 0.9},
    "product": {"members": ["large", "small"]},
    "rules": {"repetition": 1.5, "token_offsets": {}},
    "mixture": {"members": ["large", "small"]},
    "generic": {"reinforced": "small", "alpha": 1.0},
    "discriminator": {
        "wanted": {"model": "small", "prompt": "kind"},
        "unwanted": "small",
        "omega": 30.0,
        "mass": 0.2,
        "posterior": 0.8,
    },
    "dynamic": {"expert": "small-chat", "antiexpert": "small", "alpha_max": 2.0, "symmetric": False},
    "budget": {"expert": "small-chat", "antiexpert": "small", "epsilon": 0.5, "alpha_max": 1.0},
    "routed": {"assistant": "small", "threshold": "own"},
    "adaptive_temperature": {},
    "adapters": {"adapters": ["small", "small-chat"], "share": 0.5},
    "compose": {
        "compose": [
            {"strategy": "unlearn", "assistant": "small", "weight": 0.8, "filter": 1e-2},
            {"strategy": "guidance", "scale": 1.5},
        ]
    },
}


def written(strategy: str, **fields: object) -> dict[str, Any]:
    return {"strategy": strategy, **copy.deepcopy(TRIED[strategy]), **fields}


def plan_of(value: object, base: str | None = "large", **options: Any) -> object:
    token_id = {" I": 7, "I": 8}.get
    return build_plan(parse_composition(value), base, known=KNOWN, token_id=token_id, **options)


def no_token(text: str) -> None:
    """A vocabulary without any text that is one token."""


def refusal(value: object, base: str | None = "large", **options: Any) -> CompositionError:
    with pytest.raises(CompositionError) as caught:
        plan_of(value, base, **options)
    assert str(caught.value) == caught.value.message
    return caught.value


def test_every_strategy_is_listed_once() -> None:
    assert set(MINIMAL) == set(DEFAULTS) <= set(strategy_names())
    for name, kind in STRATEGIES.items():
        assert kind.model_fields["strategy"].default == name


@pytest.mark.parametrize("strategy", MINIMAL)
def test_defaults(strategy: str) -> None:
    assert describe(parse_composition(written(strategy))) == {"strategy": strategy, **DEFAULTS[strategy]}


@pytest.mark.parametrize("strategy", TRIED)
def test_every_docstring_has_formula(strategy: str) -> None:
    kind = type(parse_composition(written(strategy)))
    assert kind.__doc__ is not None
    assert kind.__doc__.startswith("`z = "), (
        f"the docstring of {kind.__name__} does not begin with its formula, `z = …`"
    )


@pytest.mark.parametrize(
    "value",
    [
        *(written(strategy, base="large") for strategy in TRIED),
        written("eft", beta=2, top_p=0.5),
        {"strategy": "eft", "traits": [{"tuned": "small-chat", "reference": "small", "top_p": 0.9}]},
        {"strategy": "dynamic", "pairs": [{"expert": "small-chat", "antiexpert": "small", "weight": 0.5}]},
        {"strategy": "contrastive", "amateur": {"model": "small", "last_tokens": 1}, "form": "original"},
        written("unlearn", filter=None),
        written("novelty", alpha=None),
        written("experts", top_p=None, expert=["large", {"model": "small", "prompt": ""}], antiexpert=None),
        written("guidance", base={"template": "plain"}, unconditional={"messages": [{"role": "user", "content": ""}]}),
        {"strategy": "product", "members": [{"model": "large", "weight": 0.5, "template": "chat"}]},
        {"strategy": "rules", "eos_ramp": {"tokens": 250, "weight": 15}, "token_offsets": {" I": -4}},
        written("divergence", form="rank", count=7),
        {"strategy": "causal", "names": ["Ada Lovelace", "Ada"], "others": [["Bob Moog", "Bob"]]},
        written("cascade", measure="entropy", threshold=2.5, schedule={"warmup": 5}),
        {"strategy": "sparse", "members": ["large", {"model": "small", "weight": 0.5}], "agreement": 1},
        written("generic", schedule={"warmup": 5}, reinforced={"model": "small", "temperature": 0.5}),
        written("compose", schedule={"points": [{"token": 0, "scale": 2}], "linear": False}, budget={"epsilon": 0.1}),
    ],
)
def test_description_is_json_that_reads_back(value: dict[str, Any]) -> None:
    composition = parse_composition(value)
    assert parse_composition(json.loads(json.dumps(describe(composition)))) == composition


def test_compose_may_be_written_without_strategy() -> None:
    value = written("compose")
    named = parse_composition(value)
    del value["strategy"]
    assert parse_composition(value) == named


# (composition, param, message): the message names the value, what is allowed and the nearest suggestion
BAD: list[tuple[object, str, str]] = [
    ([], "composition", "composition: must be an object, got []"),
    ("eft", "composition", "composition: must be an object, got 'eft'"),
    ({}, "composition.strategy", f"composition.strategy: required; allowed: {ALL}"),
    (
        {"strategy": "proxy_tunning"},
        "composition.strategy",
        f"composition.strategy: unknown strategy 'proxy_tunning'; did you mean 'proxy_tuning'? allowed: {ALL}",
    ),
    (
        {"strategy": ["eft"]},
        "composition.strategy",
        f"composition.strategy: unknown strategy ['eft']; allowed: {ALL}",
    ),
    (
        {"strategy": "proxy_tuning", "expert": "small-chat"},
        "composition.antiexpert",
        "composition.antiexpert: required",
    ),
    (
        written("proxy_tuning", alhpa=1),
        "composition.alhpa",
        "composition.alhpa: unknown field; did you mean 'alpha'? "
        "allowed: alpha, antiexpert, base, expert, schedule, strategy",
    ),
    (
        written("proxy_tuning", alpha=1e9),
        "composition.alpha",
        "composition.alpha: must be less than or equal to 100, got 1000000000.0",
    ),
    (
        written("proxy_tuning", alpha=float("nan")),
        "composition.alpha",
        "composition.alpha: must be a finite number, got nan",
    ),
    (
        written("proxy_tuning", alpha=float("-inf")),
        "composition.alpha",
        "composition.alpha: must be a finite number, got -inf",
    ),
    (written("proxy_tuning", alpha="1"), "composition.alpha", "composition.alpha: must be a valid number, got '1'"),
    (written("proxy_tuning", alpha=True), "composition.alpha", "composition.alpha: must be a valid number, got True"),
    (
        written("proxy_tuning", expert={"model": "small", "promt": ""}),
        "composition.expert.promt",
        "composition.expert.promt: unknown field; did you mean 'prompt'? "
        "allowed: last_tokens, messages, model, prompt, temperature, template",
    ),
    (
        written("proxy_tuning", expert={"model": "small", "prompt": "", "messages": [{"role": "a", "content": ""}]}),
        "composition.expert",
        "composition.expert: prompt and messages exclude each other",
    ),
    (
        written("proxy_tuning", expert={"model": "small", "prompt": "", "template": "chat"}),
        "composition.expert",
        "composition.expert: template renders messages, a prompt is read as it is: give one of them",
    ),
    (
        written("proxy_tuning", expert={"model": "small", "template": "chatty"}),
        "composition.expert.template",
        "composition.expert.template: 'chatty' is not allowed; did you mean 'chat'? allowed: chat, plain",
    ),
    (
        written("proxy_tuning", expert={"model": "small", "last_tokens": 0}),
        "composition.expert.last_tokens",
        "composition.expert.last_tokens: must be greater than or equal to 1, got 0",
    ),
    (
        written("proxy_tuning", expert={"model": "small", "messages": []}),
        "composition.expert.messages",
        "composition.expert.messages: must hold at least 1 entry, got []",
    ),
    (
        written("proxy_tuning", expert=3, antiexpert="smal"),
        "composition.expert",
        "composition.expert: must be an object, got 3",
    ),
    (
        written("proxy_tuning", expert="small-cat"),
        "composition.expert",
        "composition.expert: unknown model 'small-cat'; did you mean 'small-chat'? "
        "known models: large, small, small-chat",
    ),
    (
        written("proxy_tuning", base="lage", expert="x"),
        "composition.base",
        "composition.base: unknown model 'lage'; did you mean 'large'? known models: large, small, small-chat; "
        "composition.expert: unknown model 'x'; known models: large, small, small-chat; "
        "composition.base: 'lage' is not the request's model 'large': name one base",
    ),
    (
        written("guidance", base="small"),
        "composition.base",
        "composition.base: 'small' is not the request's model 'large': name one base",
    ),
    (
        {"strategy": "dynamic", "expert": "small"},
        "composition",
        "composition: needs expert and antiexpert, or pairs",
    ),
    (
        written("dynamic", pairs=[{"expert": "small-chat", "antiexpert": "small"}]),
        "composition",
        "composition: give either pairs, or expert and antiexpert of one pair, not both",
    ),
    (
        {"strategy": "dynamic", "pairs": [{"expert": "small-chat", "antiexpert": "smal", "wieght": 2}]},
        "composition.pairs.0.wieght",
        "composition.pairs.0.wieght: unknown field; did you mean 'weight'? allowed: antiexpert, expert, weight",
    ),
    (
        {"strategy": "eft", "tuned": "small"},
        "composition",
        "composition: needs tuned and reference, or traits",
    ),
    (
        written("eft", traits=[{"tuned": "small-chat", "reference": "small"}]),
        "composition",
        "composition: give either traits, or tuned, reference, beta and top_p of one trait, not both",
    ),
    (
        {"strategy": "eft", "traits": [{"tuned": "small", "reference": "small"}, {"tuned": "small", "beta": None}]},
        "composition.traits.1.reference",
        "composition.traits.1.reference: required; composition.traits.1.beta: must be a valid number, got None",
    ),
    (
        {"strategy": "eft", "traits": [{"tuned": "smal", "reference": "small"}]},
        "composition.traits.0.tuned",
        "composition.traits.0.tuned: unknown model 'smal'; did you mean 'small'? "
        "known models: large, small, small-chat",
    ),
    (
        written("contrastive", alpha=0),
        "composition.alpha",
        "composition.alpha: must be greater than 0, got 0",
    ),
    (
        written("contrastive", form="origin"),
        "composition.form",
        "composition.form: 'origin' is not allowed; did you mean 'original'? allowed: original, reasoning",
    ),
    (
        written("contrastive", form="original", beta=0.5),
        "composition",
        "composition: beta belongs to form 'reasoning': form 'original' has weights 1 and −1",
    ),
    (
        written("novelty", lambda_=1),
        "composition.lambda_",
        "composition.lambda_: unknown field; did you mean 'lambda'? "
        "allowed: alpha, base, lambda, schedule, strategy, untuned",
    ),
    (
        written("proxy_tuning", schedule={"warmpu": 3}),
        "composition.schedule.warmpu",
        "composition.schedule.warmpu: unknown field; did you mean 'warmup'? allowed: linear, phase, points, warmup",
    ),
    (
        written("proxy_tuning", schedule={"points": [{"token": 0, "scale": -1}]}),
        "composition.schedule.points.0.scale",
        "composition.schedule.points.0.scale: must be greater than or equal to 0, got -1",
    ),
    (
        written("generic", schedule={}),
        "composition.schedule",
        "composition.schedule: needs one of warmup, points, phase",
    ),
    (
        written("generic", schedule={"points": [{"token": 3, "scale": 1}]}),
        "composition.schedule",
        "composition.schedule: the first of points must be at token 0, got 3",
    ),
    (
        written("generic", schedule={"points": [{"token": t, "scale": 1} for t in (0, 5, 5)]}),
        "composition.schedule",
        "composition.schedule: points must ascend, got tokens [0, 5, 5]",
    ),
    (
        written("generic", schedule={"warmup": 5, "linear": True}),
        "composition.schedule",
        "composition.schedule: linear needs two points at least",
    ),
    (
        written("divergence", form="rank", alpha=1),
        "composition",
        "composition: alpha belongs to form 'linear': form 'rank' has a count",
    ),
    (
        written("divergence", count=3),
        "composition",
        "composition: count belongs to form 'rank': form 'linear' has an alpha",
    ),
    (
        {"compose": [written("divergence", form="rank")]},
        "composition.compose.0",
        "composition.compose.0: form 'rank' of 'divergence' cannot be stacked: it is no sum of shifts",
    ),
    (
        written("causal", others=["Bob", ["Cy", "C"]]),
        "composition",
        "composition: names has 1 forms, ['Cy', 'C'] of others 2: give as many",
    ),
    (
        written("cascade", measure="margin", threshold=1.5),
        "composition",
        "composition: threshold of measure 'margin' is a probability, at most 1: got 1.5",
    ),
    (
        written("cascade", measure="max_probability"),
        "composition.measure",
        "composition.measure: 'max_probability' is not allowed; did you mean 'max_prob'? "
        "allowed: entropy, margin, max_prob",
    ),
    (
        written("contrastive", amateur={"model": "small", "temperature": 2}, amateur_temperature=3),
        "composition",
        "composition: amateur_temperature and the amateur's own temperature are the same: give one of them",
    ),
    (
        {
            "compose": [
                {"strategy": "rules", "repetition": 1},
                {"strategy": "rules", "repetition": 1, "schedule": {"warmup": 5}},
            ]
        },
        "composition",
        "composition: rules of different schedules cannot be added: use one schedule",
    ),
    (
        {"strategy": "context_aware", "without": {"template": "plain"}},
        "composition.without",
        "composition.without: needs one of prompt, messages, last_tokens",
    ),
    (
        {"strategy": "context_aware", "without": {"model": "small", "prompt": ""}},
        "composition.without.model",
        "composition.without.model: unknown field; allowed: last_tokens, messages, prompt, temperature, template",
    ),
    (
        written("guidance", negative_prompt="", unconditional={"prompt": ""}),
        "composition",
        "composition: negative_prompt and unconditional exclude each other",
    ),
    ({"strategy": "experts"}, "composition", "composition: needs expert or antiexpert"),
    (
        {"strategy": "experts", "expert": {"model": 3}},
        "composition.expert.model",
        "composition.expert.model: must be a valid string, got 3",
    ),
    (
        {"strategy": "experts", "expert": ["small", 3]},
        "composition.expert.1",
        "composition.expert.1: must be an object, got 3",
    ),
    (
        {"strategy": "experts", "expert": "smal"},
        "composition.expert",
        "composition.expert: unknown model 'smal'; did you mean 'small'? known models: large, small, small-chat",
    ),
    (written("experts", alpha="x"), "composition.alpha", "composition.alpha: must be a valid number, got 'x'"),
    (
        written("experts", alpha=[1, 2]),
        "composition",
        "composition: alpha has 2 entries, antiexpert 1: give one for each, or one",
    ),
    (
        {"strategy": "product", "members": ["small"]},
        "composition.members",
        "composition.members: the base 'large' (with its prompt) is not a member; members: small. "
        "Compose on one of them, or list the base with its weight",
    ),
    (
        {"strategy": "rules"},
        "composition",
        "composition: needs one of eos_ramp, repetition, token_offsets",
    ),
    (
        {"strategy": "rules", "token_offsets": {"I am": 1, "42": 1, "I": 1}},
        "composition.token_offsets",
        "composition.token_offsets: 'I am' is not exactly one token; an id is written 'id:123'; "
        "composition.token_offsets: '42' is not exactly one token; an id is written 'id:123'",
    ),
    (
        {"strategy": "rules", "token_offsets": {"id:9999999999": 1}},
        "composition.token_offsets",
        "composition.token_offsets: 'id:9999999999' is not in the vocabulary",
    ),
    (
        {"strategy": "rules", "eos_ramp": {"tokens": 0, "weight": 1}},
        "composition.eos_ramp.tokens",
        "composition.eos_ramp.tokens: must be greater than or equal to 1, got 0",
    ),
    (
        {"compose": [{"strategy": "eft", "tune": "x", "traits": 5}, {"strategy": "unlear"}, {}, 7]},
        "composition.compose.0.traits",
        "composition.compose.0.traits: must be a valid list, got 5; "
        "composition.compose.0.tune: unknown field; did you mean 'tuned'? "
        "allowed: base, beta, reference, schedule, strategy, top_p, traits, tuned; "
        f"composition.compose.1: unknown strategy 'unlear'; did you mean 'unlearn'? allowed: {PARTS}; "
        f"composition.compose.2: strategy is missing; allowed: {PARTS}; "
        "composition.compose.3: must be an object, got 7",
    ),
    (
        {"compose": [{"strategy": "compose", "compose": []}]},
        "composition.compose.0",
        f"composition.compose.0: unknown strategy 'compose'; allowed: {PARTS}",
    ),
    (
        {"base": "large", "compose": [{"strategy": "guidance", "base": {"prompt": ""}}]},
        "composition.compose.0.base",
        "composition.compose.0.base: not the base of the whole composition",
    ),
    (
        {"compose": [{"strategy": "rules", "eos_ramp": {"tokens": n, "weight": 1}} for n in (2, 5)]},
        "composition",
        "composition: eos_ramp of [2, 5] tokens cannot be added: use one length",
    ),
]


@pytest.mark.parametrize(("value", "param", "message"), BAD)
def test_refusals(value: object, param: str, message: str) -> None:
    error = refusal(value)
    assert error.message == message
    assert error.param == param


def test_base_must_come_from_somewhere() -> None:
    for value in (written("guidance"), written("guidance", base={"template": "plain"})):
        error = refusal(value, base=None)
        assert error.param == "composition.base"
        assert error.message == "composition.base: required: neither the composition nor the request names one"


def test_unknown_request_model_is_named_as_such() -> None:
    error = refusal(written("guidance"), base="larg")
    assert error.param == "model"
    assert error.message == "model: unknown model 'larg'; did you mean 'large'? known models: large, small, small-chat"


def test_token_ids_are_bounded_where_the_vocabulary_is_known() -> None:
    value = {"strategy": "rules", "token_offsets": {"id:100": 1}}
    plan_of(value, vocab_size=101)
    assert refusal(value, vocab_size=100).message == (
        "composition.token_offsets: 'id:100' is not in the vocabulary; allowed: 0 to 99"
    )


def test_too_many_streams_are_refused() -> None:
    def experts(i: int) -> dict[str, Any]:
        return {"strategy": "experts", "expert": [{"model": "small", "prompt": f"{i} {j}"} for j in range(8)]}

    error = refusal({"compose": [experts(i) for i in range(4)]})
    assert error.message == "composition: 33 streams, at most 32 are allowed"


def test_long_values_and_long_lists_of_names_are_cut() -> None:
    assert len(refusal(written("guidance", scale="9" * 100_000)).message) < 200
    assert len(refusal(written("guidance", scale=10**400)).message) < 200
    with pytest.raises(CompositionError) as caught:
        build_plan(parse_composition(written("unlearn")), "m1", known=[f"m{i}" for i in range(500)], token_id=no_token)
    assert caught.value.message.endswith("and 460 more")


def test_guidance_fields() -> None:
    assert describe(from_guidance_fields(3, "bad")) == {"strategy": "guidance", "scale": 3.0, "negative_prompt": "bad"}
    assert describe(from_guidance_fields(None, "bad"))["scale"] == 1.5
    assert describe(from_guidance_fields(2.5, None)) == {"strategy": "guidance", "scale": 2.5}


def test_guidance_fields_are_named_in_errors() -> None:
    with pytest.raises(CompositionError) as caught:
        from_guidance_fields(1e9, 3)
    assert caught.value.param == "guidance_scale"
    assert caught.value.message == (
        "guidance_scale: must be less than or equal to 100, got 1000000000.0; "
        "negative_prompt: must be a valid string, got 3"
    )
    with pytest.raises(CompositionError) as caught:
        from_guidance_fields(None, 3)
    assert caught.value.param == "negative_prompt"


def test_schema_names_every_strategy_and_the_short_form_of_roles() -> None:
    schema = composition_schema()
    assert set(schema["discriminator"]["mapping"]) == set(strategy_names())
    assert {"type": "string"} in schema["$defs"]["ProxyTuning"]["properties"]["expert"]["anyOf"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "base expert antiexpert alpha traits amateur beta form lambda without scale members eos_ramp repetition "
    "token_offsets compose strategy top_p filter x"
)
FIELD = st.sampled_from(FIELDS.split())


def plan_or_refusal(value: object) -> CompositionError | None:
    try:
        plan_of(value)
    except CompositionError as error:
        return error
    return None


@settings(deadline=None)
@given(st.sampled_from(list(TRIED)), st.dictionaries(FIELD, JSON, max_size=3))
def test_any_json_is_a_plan_or_a_refusal(strategy: str, changes: dict[str, Any]) -> None:
    """No other exception: what a client sends can never become a server error."""
    error = plan_or_refusal({**written(strategy), **changes})
    assert error is None or error.param.split(".")[0] in ("composition", "model")


@settings(deadline=None)
@given(JSON)
def test_any_role_is_a_plan_or_a_refusal(role: object) -> None:
    for value in (
        written("proxy_tuning", expert=role),
        written("experts", expert=[role], alpha=role),
        written("guidance", unconditional=role),
        {"compose": [role, {"strategy": "eft", "traits": [role]}]},
        role,
    ):
        error = plan_or_refusal(value)
        assert error is None or error.message


def test_too_many_entries_are_not_looked_at() -> None:
    """One problem, whatever the entries are: 20,000 of them took a second to describe."""
    with pytest.raises(CompositionError) as refused:
        parse_composition({"strategy": "rules", "token_offsets": {f"t{i}": "a" for i in range(20_000)}})
    assert refused.value.message.startswith("composition.token_offsets: must hold at most 1,024 entries, not 20,000")
    assert refused.value.param == "composition.token_offsets"
