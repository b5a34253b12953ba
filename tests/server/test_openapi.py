"""The OpenAPI description is true: whatever is sent is answered as it says, and nothing is a 5xx."""

# schemathesis leaves much of its surface untyped
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

import copy
import re
import threading
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from motet.composers.spec import composition_schema
from motet.server.app import create_app
from tests.fakes import FakeEngine
from tests.server.conftest import World, make_service

load_all_checks()
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
CHECKED: list[Any] = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
    )
]
SERVICE = make_service()
APP = create_app(SERVICE)


def without_compositions() -> dict[str, Any]:
    """The description with compositions as plain objects: combining all strategies with all fields takes minutes, and
    nearly every random composition names models that do not exist."""
    described = copy.deepcopy(APP.openapi())
    for part in described["components"]["schemas"].values():
        if "composition" in part.get("properties", {}):
            part["properties"]["composition"] = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    _forget_long_lists(described)
    return described


def _forget_long_lists(value: Any) -> None:
    """Lists of one item too many are made for every bound, each item a search: `test_bounds` sends the long ones."""
    if isinstance(value, dict):
        for name in ("maxItems", "maxProperties"):
            if isinstance(value.get(name), int) and value[name] > 256:
                del value[name]
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _forget_long_lists(child)


schema = schemathesis.openapi.from_dict(without_compositions())
schema.app = APP
# what fits no schema may be longer than any body may be, too
schema.config.checks.negative_data_rejection.expected_statuses.append("413")


AnyCase = schemathesis.Case[Any]
MODELS = ("large", "large-proxy", "expert")
# What no schema can describe: names that exist, ids of the vocabulary, fields that exclude each other.
CROSS_CHECKED = frozenset({
    "composition", "guidance_scale", "negative_prompt", "logit_bias", "stop_token_ids", "allowed_token_ids",
    "min_tokens", "max_tokens", "max_completion_tokens", "top_logprobs", "truncate_prompt_tokens",
    "add_generation_prompt", "prompt_logprobs", "response_format", "structured_outputs", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar",
})  # fmt: skip


def make_plausible(case: AnyCase) -> None:
    """Bodies that fit the schema get a model that exists and lose what the vocabulary or another field decides
    about: as they are, hardly any of them is answered."""
    body: Any = case.body
    if not isinstance(body, dict) or case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    body["model"] = MODELS[len(str(body.get("model"))) % len(MODELS)]
    for field in CROSS_CHECKED:
        body.pop(field, None)
    if body.get("messages") is not None:
        body.pop("prompt", None)
        body["messages"][0]["content"] = body["messages"][0].get("content") or "Hi"
    if "continuations" in body:
        body["continuations"] = body["continuations"][:2]
    if "candidates" in body:
        body["candidates"] = [name for name, _ in zip(MODELS, body["candidates"], strict=False)]


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=SLOW)
def test_every_answer_is_described(case: AnyCase) -> None:
    make_plausible(case)
    case.call_and_validate(checks=CHECKED)
    assert SERVICE.admission.taken == 0


def test_the_examples_reached_the_engine() -> None:
    """Else the test above would only have seen refusals."""
    assert isinstance(SERVICE.engine, FakeEngine)
    assert len(SERVICE.engine.requests) > 50


def test_every_field_is_described() -> None:
    """Of requests, answers and compositions; operations and their parameters too."""
    described = APP.openapi()
    fields = {
        f"{name}.{field}": schema
        for name, shape in described["components"]["schemas"].items()
        for field, schema in shape.get("properties", {}).items()
    }
    operations = {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    parameters = {
        f"{name} {parameter['name']}": parameter
        for name, operation in operations.items()
        for parameter in operation.get("parameters", [])
    }
    everything = fields | operations | parameters
    assert len(everything) > 300
    assert [name for name, schema in everything.items() if not schema.get("description")] == []


def test_no_name_means_two_things() -> None:
    """The compositions' schemas are put beside the requests' own: a shared name would replace one of them."""
    ours = get_openapi(title="", version="", routes=APP.routes)["components"]["schemas"]
    assert ours.keys() & composition_schema()["$defs"].keys() == set()


async def test_the_page_of_the_api_asks_no_other_machine(world: World) -> None:
    page = (await world.client.get("/docs")).text
    assert "http" not in page
    files = re.findall(r"""(?:href|src)="(.*?)"|url: '(.*?)'""", page)
    paths = [path for pair in files for path in pair if path]
    assert len(paths) == 4
    for path in paths:
        assert re.match("/[^/]", path), "on this server"
        assert (await world.client.get(path)).status_code == 200


async def test_the_description_is_made_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """It takes a second, in which others are answered."""
    made: list[threading.Thread] = []
    app = create_app(world.service)
    described = app.openapi

    def describe() -> dict[str, Any]:
        made.append(threading.current_thread())
        return described()

    monkeypatch.setattr(app, "openapi", describe)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://motet") as client:
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "Motet"
    assert made
    assert threading.main_thread() not in made
