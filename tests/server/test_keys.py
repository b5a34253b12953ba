"""What a key may take, what it finds in the cache, and what clients can write into the log."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

from motet.operator.access import Access
from motet.operator.keys import Key, digest_of, problem
from motet.server.app import create_app
from motet.server.http.logs import JsonLines, PlainLines, WithRequestId
from motet.server.http.rates import Rates
from tests.server.conftest import MakeWorld, World, make_service

TEXT: dict[str, Any] = {"model": "large", "prompt": "Hi", "max_tokens": 2, "ignore_eos": True}
FORGED = "x\nFORGED\r\x1b[31m\x00\x7f\x85\u2028"


def of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_hashed_key_is_known_by_the_key_alone(make_world: MakeWorld) -> None:
    written = f"sha256:{digest_of('secret').hex()}"
    client = make_world(api_keys=(written,)).client
    assert (await client.get("/v1/models", headers=of("secret"))).status_code == 200
    assert (await client.get("/v1/models", headers=of(written))).status_code == 401


async def test_no_key_is_never_a_key() -> None:
    """The digest of nothing, which `sha256sum` writes where a variable is not set, opens no door."""
    nothing = Key("nobody", digest_of(""))
    service = replace(make_service(api_keys=("k",)), access=Access([nothing, Key.read("k")]))
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://motet") as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers=of(""))).status_code == 401
        assert (await client.get("/v1/models", headers=of("k"))).status_code == 200


@pytest.mark.parametrize("text", ["", "\n"])
def test_hashes_of_nothing_are_refused(text: str) -> None:
    assert "empty" in (problem(f"sha256:{digest_of(text).hex()}") or "")


async def test_what_the_operator_opens_wants_no_key(make_world: MakeWorld) -> None:
    client = make_world(api_keys=("k",), open_docs=True, open_metrics=True).client
    opened = ("/docs", "/openapi.json", "/metrics", "/static-offline-docs/swagger-ui.css")
    assert {(await client.get(path)).status_code for path in opened} == {200}
    closed = ("/v1/models", "/docs/x", "/static-offline-docsx", "/metrics/")
    assert {(await client.get(path)).status_code for path in closed} == {401}


async def test_requests_per_minute_of_a_key(make_world: MakeWorld) -> None:
    client = make_world(api_keys=("one", "two"), max_requests_per_minute_per_key=2).client
    codes = [(await client.get("/version", headers=of("one"))).status_code for _ in range(2)]
    refused = await client.get("/version", headers=of("one"))
    assert [*codes, refused.status_code] == [200, 200, 429]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (await client.get("/version", headers=of("two"))).status_code == 200
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_per_minute_of_a_key(make_world: MakeWorld, stream: bool) -> None:
    world = make_world(api_keys=("one", "two"), max_tokens_per_minute_per_key=10)
    asked = TEXT | {"max_tokens": 20, "stream": stream}
    first = await world.client.post("/v1/completions", json=asked, headers=of("one"))
    refused = await world.client.post("/v1/completions", json=asked, headers=of("one"))
    other = await world.client.post("/v1/completions", json=asked, headers=of("two"))
    assert (first.status_code, refused.status_code, other.status_code) == (200, 429, 200)
    assert 70 <= int(refused.headers["retry-after"]) <= 80, "22 tokens run out at ten a minute"
    assert world.service.admission.taken == 0


async def test_scored_tokens_count(make_world: MakeWorld) -> None:
    world = make_world(api_keys=("one",), max_tokens_per_minute_per_key=4)
    body = {"model": "large", "prompt": "Hi", "continuations": ["abc"]}
    codes = [(await world.client.post("/v1/score", json=body, headers=of("one"))).status_code for _ in range(2)]
    assert codes == [200, 429]


def test_a_bucket_empties_at_its_rate() -> None:
    now = 0.0
    rates = Rates(6, clock=lambda: now)
    for _ in range(6):
        assert rates.wait("k") == 0
        rates.spend("k", 1)
    assert rates.wait("k") == 10
    now = 9.5
    assert rates.wait("k") == 1
    now = 10.0
    assert rates.wait("k") == 0
    rates.spend("k", 12)
    assert rates.wait("k") == 120
    now = 1e6
    assert (rates.wait("k"), rates.wait("other")) == (0, 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/score", "/v1/chat/completions", "/v1/compare"])
async def test_prefixes_are_kept_apart_by_key_and_salt(make_world: MakeWorld, path: str) -> None:
    world = make_world(api_keys=("one", "two"))
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": TEXT,
        "/v1/score": {"model": "large", "prompt": "Hi", "continuations": ["a"]},
        "/v1/chat/completions": {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        "/v1/compare": {"prompt": "Hi", "candidates": ["large"], "max_tokens": 1},
    }
    for key, salt in (("one", None), ("two", None), ("one", "pepper"), ("one", None)):
        body = bodies[path] | ({"cache_salt": salt} if salt else {})
        assert (await world.client.post(path, json=body, headers=of(key))).status_code == 200
    salts = [request.cache_salt for request in world.engine.requests]
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3


async def test_without_keys_a_salt_is_still_honoured(world: World) -> None:
    for salt in (None, "a", "b"):
        assert (await world.post("/v1/completions", **TEXT, cache_salt=salt)).status_code == 200
    assert [request.cache_salt for request in world.engine.requests] == ["", ":a", ":b"]


@pytest.mark.parametrize("salt", ["", "x" * 129, "a/b", "a@b", "a\\b", "a\x00b", 5])
async def test_salts_that_vllm_would_refuse(world: World, salt: object) -> None:
    refused = await world.post("/v1/completions", **TEXT, cache_salt=salt)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "cache_salt"


def record(message: str, *args: object) -> logging.LogRecord:
    made = logging.LogRecord("motet.x", logging.INFO, "", 0, message, args, None)
    WithRequestId().filter(made)
    return made


def test_no_input_writes_a_line_or_a_sign_of_its_own() -> None:
    plain = PlainLines().format(record("GET %s", FORGED))
    assert plain.isprintable()
    assert r"GET x\nFORGED\r\x1b[31m\x00\x7f\x85\u2028" in plain
    as_json = JsonLines().format(record("GET %s", FORGED + "\U000e0001"))
    assert as_json.isprintable()
    assert json.loads(as_json)["message"] == f"GET {FORGED}\U000e0001"


def test_lines_of_an_exception_are_indented() -> None:
    made = record("failed")
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    first, *rest = PlainLines().format(made).split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


async def test_a_path_cannot_forge_a_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "motet.access"):
        await world.client.get("/x%0aFORGED%1b[31m%00")
    (line,) = [PlainLines().format(made) for made in caplog.records if _with_id(made)]
    assert line.isprintable()
    assert r"/x\nFORGED\x1b[31m\x00 404" in line


def _with_id(made: logging.LogRecord) -> bool:
    return made.name == "motet.access" and WithRequestId().filter(made)


async def test_a_long_path_is_not_logged_whole(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "motet.access"):
        await world.client.get("/" + "x" * 30_000)
    (line,) = [made.getMessage() for made in caplog.records if made.name == "motet.access"]
    assert len(line) < 300
