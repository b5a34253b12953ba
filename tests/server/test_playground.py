"""The playground's routes: what is served without a key, how strictly, and what switches it off."""

from __future__ import annotations

import pytest
import yaml

from motet.operator.settings import ServerConfig
from motet.server.http.middleware import PAGE
from tests.server.conftest import MakeWorld, World


async def test_the_page_is_served_with_its_own_policy(world: World) -> None:
    for path in PAGE:
        response = await world.client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        again = await world.client.get(path, headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "text/html" in (await world.client.get("/")).headers["content-type"]


async def test_only_its_own_files_are_served(world: World) -> None:
    for name in ("app.py", "..%2fapp.py", "playground.tsx"):
        response = await world.client.get(f"/playground/{name}")
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_page_wants_no_key_and_its_data_do(make_world: MakeWorld) -> None:
    client = make_world(api_keys=("secret",)).client
    assert {(await client.get(path)).status_code for path in PAGE} == {200}
    guarded = ("/playground/examples", "/v1/strategies", "/v1/models")
    assert {(await client.get(path)).status_code for path in guarded} == {401}


async def test_it_can_be_switched_off(make_world: MakeWorld) -> None:
    for config in ({"playground": False}, {"playground": {"enabled": False}}):
        world = make_world(**config)
        assert {(await world.client.get(path)).status_code for path in (*PAGE, "/playground/examples")} == {404}
        assert (await world.client.get("/metrics")).status_code == 200
        assert (await world.client.get("/v1/strategies")).status_code == 200
    locked = make_world(playground=False, api_keys=("secret",))
    assert {(await locked.client.get(path)).status_code for path in PAGE} == {401}, "nothing tells that it is off"


async def test_it_offers_what_the_operator_wrote(make_world: MakeWorld) -> None:
    example = {"title": "Look", "model": "large-proxy", "beside": ["large"], "question": "Who?"}
    world = make_world(playground={"examples": [example]})
    assert (await world.client.get("/playground/examples")).json() == {"data": [example | {"form": "chat"}]}


@pytest.mark.parametrize(("written", "enabled"), [("false", False), ("true", True), ("{enabled: false}", False)])
def test_the_switch_as_it_is_written(written: str, enabled: bool) -> None:
    config = ServerConfig.model_validate(yaml.safe_load(f"playground: {written}"))
    assert config.playground.enabled is enabled
    if "{" not in written:  # the environment has texts alone
        assert ServerConfig.model_validate({"playground": written}).playground.enabled is enabled
