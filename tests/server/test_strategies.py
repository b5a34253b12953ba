"""GET /v1/strategies over the fake engine: what there is, and who can play what."""

from __future__ import annotations

from dataclasses import replace

from motet.experts.bundle import ExpertBundle
from motet.experts.schema import ModelReference
from motet.server.shapes.descriptions import StrategyList
from tests.server.conftest import MakeWorld, World


async def listed(world: World) -> StrategyList:
    return StrategyList.model_validate((await world.client.get("/v1/strategies")).json())


async def test_what_it_describes_can_be_asked(world: World) -> None:
    """A client that fills required roles and bounds from the answer alone is answered."""
    told = await listed(world)
    proxy = next(strategy for strategy in told.data if strategy.id == "proxy_tuning")
    casts = {cast.id: cast for cast in told.models}
    partners = [name for name in casts["large"].composes_with if name != "large"]
    composition: dict[str, object] = {"strategy": proxy.id}
    composition |= {role.name: partners[0] for role in proxy.roles if role.required}
    for parameter in proxy.parameters:
        composition[parameter.name] = (parameter.model_extra or {})["maximum"]
    answer = await world.post("/v1/completions", model="large", prompt="Hi", max_tokens=1, composition=composition)
    assert answer.status_code == 200, answer.text


async def test_models_of_another_vocabulary_are_not_composed(world: World) -> None:
    casts = {cast.id: cast for cast in (await listed(world)).models}
    assert "stranger" not in casts["large"].composes_with
    assert casts["stranger"].composes_with == ["stranger"]
    assert set(casts["large"].composes_with) == set(casts) - {"stranger"}


async def test_what_the_engine_does_not_run_is_said(world: World) -> None:
    told = {strategy.id: strategy for strategy in (await listed(world)).data}
    assert told["experts"].unsupported == "masks are not faked"
    assert told["proxy_tuning"].unsupported is None


async def test_an_expert_takes_the_role_that_it_was_made_for(world: World) -> None:
    members = dict(world.service.registry.members)
    bundle = ExpertBundle(
        name="e",
        role="expert",
        strategy="proxy_tuning",
        tokenizer_fingerprint="0" * 64,
        vocab_size=1,
        objective="completion",
    )
    members["expert"] = replace(members["expert"], expert=bundle)
    world.service.registry.members = members
    roles = {cast.id: cast.roles for cast in (await listed(world)).models}
    assert roles["expert"]["proxy_tuning"] == ["base", "expert"]
    assert roles["expert"]["eft"] == ["base", "tuned", "reference"]
    assert roles["small"]["proxy_tuning"] == ["base", "expert", "antiexpert"]


async def test_an_experts_partner_is_known_by_its_weights(world: World) -> None:
    members = dict(world.service.registry.members)
    bundle = ExpertBundle(
        name="e",
        role="expert",
        strategy="proxy_tuning",
        partner=ModelReference(path="elsewhere/before-training", weights="5" * 64),
        tokenizer_fingerprint="0" * 64,
        vocab_size=1,
        objective="completion",
    )
    members["expert"] = replace(members["expert"], expert=bundle)
    members["small"] = replace(members["small"], weights="5" * 64)
    world.service.registry.members = members
    told = await listed(world)
    assert {cast.id: cast.partner for cast in told.models if cast.partner} == {"expert": "small"}
    assert all(cast.num_parameters == members[cast.id].info.num_parameters for cast in told.models)
    roles = {strategy.id: strategy.partners for strategy in told.data}
    assert (roles["proxy_tuning"], roles["rules"]) == (["expert", "antiexpert"], None)


async def test_it_wants_a_key(make_world: MakeWorld) -> None:
    assert (await make_world(api_keys=("secret",)).client.get("/v1/strategies")).status_code == 401
