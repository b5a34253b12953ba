"""Keys, places, request ids, probes and metrics."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging

import pytest
from fastapi.routing import APIRoute

from motet.server.app import ROUTERS
from motet.server.http.errors import ApiError
from motet.server.http.logs import JsonLines
from motet.server.service import Admission, get_service
from tests.server.conftest import MakeWorld, World

TEXT = {"model": "large", "prompt": "Hi", "max_tokens": 2}


async def test_keys_guard_everything_but_the_probes(make_world: MakeWorld) -> None:
    world = make_world(api_keys=("secret", "other"))
    guarded = ["/v1/models", "/version", "/metrics", "/tokenizer_info", "/openapi.json", "/docs", "/nothing"]
    assert {(await world.client.get(path)).status_code for path in guarded} == {401}
    assert {(await world.client.get(path)).status_code for path in ("/health", "/livez", "/ready")} == {200}
    refused = await world.post("/v1/completions", **TEXT)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret", 200),
        ("bearer other", 200),
        ("Bearer secre", 401),
        ("Bearer secrett", 401),
        ("Basic secret", 401),
        ("Bearer", 401),
        ("", 401),
    ],
)
async def test_keys(make_world: MakeWorld, header: str, status: int) -> None:
    world = make_world(api_keys=("secret", "other"))
    response = await world.client.get("/v1/models", headers={"authorization": header})
    assert response.status_code == status


async def test_full_queue_is_503_with_retry_after(make_world: MakeWorld) -> None:
    world = make_world(max_choices=2)
    place = world.service.admission.reserve(1)
    full = await world.post("/v1/completions", **TEXT, n=2)
    assert full.status_code == 503
    assert full.headers["retry-after"] == "1"
    assert full.json()["error"]["code"] == "queue_full"
    place.release()
    assert (await world.post("/v1/completions", **TEXT, n=2)).status_code == 200
    never = await world.post("/v1/completions", **TEXT, n=3)
    assert never.status_code == 400
    assert world.service.admission.taken == 0


async def test_a_key_has_its_share(make_world: MakeWorld) -> None:
    world = make_world(api_keys=("one", "two"), max_choices=10, max_choices_per_key=2)
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    world.engine.gate.clear()
    running = asyncio.create_task(world.client.post("/v1/completions", json=TEXT | {"n": 2}, headers=one))
    while world.service.admission.taken < 2:  # noqa: ASYNC110  (no event says so)
        await asyncio.sleep(0)
    refused = await world.client.post("/v1/completions", json=TEXT, headers=one)
    world.engine.gate.set()
    allowed = await world.client.post("/v1/completions", json=TEXT, headers=two)
    assert (refused.status_code, allowed.status_code, (await running).status_code) == (429, 200, 200)
    assert refused.headers["retry-after"] == "1"


async def test_probes_tell_of_a_dead_engine(world: World) -> None:
    world.engine.closed = True
    for path in ("/health", "/livez", "/ready"):
        response = await world.client.get(path)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_stopped"


def test_places_are_given_back_once() -> None:
    admission = Admission(max_choices=4)
    place = admission.reserve(3)
    with pytest.raises(ApiError):
        admission.reserve(2)
    place.release()
    place.release()
    assert admission.taken == 0
    assert admission.idle.is_set()


async def test_request_ids_are_echoed_or_made(world: World) -> None:
    own = await world.client.get("/health", headers={"x-request-id": "abc-1"})
    made = await world.client.get("/health")
    unusable = await world.client.get("/health", headers={"x-request-id": "x" * 200})
    assert own.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == len(unusable.headers["x-request-id"]) == 32


async def test_request_id_reaches_engine_and_errors(world: World) -> None:
    headers = {"x-request-id": "abc-2"}
    await world.client.post("/v1/completions", json=TEXT, headers=headers)
    wrong = await world.client.post("/v1/completions", json={}, headers=headers)
    assert world.engine.requests[0].request_id == "abc-2-0"
    assert wrong.headers["x-request-id"] == "abc-2"


def test_json_lines() -> None:
    record = logging.LogRecord("motet.x", logging.INFO, "", 0, "said %d", (3,), None)
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["logger"], line["message"], line["request_id"]) == ("info", "motet.x", "said 3", "-")


async def test_cors_is_off_unless_asked(make_world: MakeWorld) -> None:
    headers = {"origin": "http://page", "access-control-request-method": "POST"}
    closed = await make_world().client.options("/v1/completions", headers=headers)
    opened = await make_world(cors_origins=("http://page",), api_keys=("k",)).client.options(
        "/v1/completions", headers=headers
    )
    assert "access-control-allow-origin" not in closed.headers
    assert opened.headers["access-control-allow-origin"] == "http://page"
    assert opened.status_code == 200


async def test_metrics_count_what_happened(world: World) -> None:
    await world.post("/v1/completions", **TEXT, ignore_eos=True, n=2, trace=True)
    await world.post("/v1/completions", **TEXT | {"model": "large-proxy"}, ignore_eos=True)
    text = (await world.client.get("/metrics")).text
    for line in (
        'motet:prompt_tokens_total{strategy="plain"} 2.0',
        'motet:generation_tokens_total{strategy="plain"} 4.0',
        'motet:generation_tokens_total{strategy="proxy_tuning"} 2.0',
        'motet:request_success_total{finished_reason="length",strategy="plain"} 2.0',
        'motet:time_to_first_token_seconds_count{strategy="plain"} 2.0',
        'motet:request_queue_time_seconds_sum{strategy="plain"} 0.25',
        'motet:inter_token_latency_seconds_count{strategy="plain"} 2.0',
        'motet:e2e_request_latency_seconds_count{strategy="proxy_tuning"} 1.0',
        'motet:shift_kl_nats_count{strategy="plain"} 4.0',
        'motet:member_forward_seconds_total{member="large"} 0.5',
        "motet:num_requests_running 0.0",
        "motet:num_requests_waiting 0.0",
        "motet:kv_cache_usage_perc 0.0",
    ):
        assert line in text


async def test_version_and_models(world: World) -> None:
    assert (await world.client.get("/version")).json() == {"version": "0.1.0"}
    models = (await world.client.get("/v1/models")).json()["data"]
    cards = {card["id"]: card for card in models}
    assert cards["large"]["max_model_len"] == 256
    assert cards["large"]["composition"] is None
    assert cards["large-proxy"]["parent"] == "large"
    assert cards["large-proxy"]["composition"]["strategy"] == "proxy_tuning"
    assert (await world.client.get("/v1/models/large-proxy")).json() == cards["large-proxy"]
    missing = await world.client.get("/v1/models/org/name")
    assert missing.status_code == 404
    assert "org/name" in missing.json()["error"]["message"]


def test_no_request_waits_for_a_thread() -> None:
    """FastAPI runs synchronous endpoints and dependencies in its few threads, one hop for each request."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    called = {dependency.call for route in routes for dependency in (route.dependant, *route.dependant.dependencies)}
    assert get_service in called
    assert [call for call in called if not inspect.iscoroutinefunction(call)] == []
