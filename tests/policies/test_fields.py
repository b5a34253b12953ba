"""The lists of the guard against what requests, answers and draws can hold: what is on no list is closed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from motet.engines.base import SamplingParams
from motet.operator.access import Access, Grant
from motet.operator.policies import GIVES_AWAY, Allow, PolicyConfig
from motet.operator.visible import NotAllowed
from motet.server.app import ROUTERS
from motet.server.guard import (
    BELOW,
    DRAWN,
    ENDPOINTS,
    FIELDS,
    MESSAGE,
    PART,
    PROBES,
    SHOWN,
    STEERS,
    STREAM,
    check_drawn,
    check_endpoint,
    check_fields,
    check_shown,
)
from motet.server.http.bodies import JsonRoute
from motet.server.http.errors import CODES_OF_PARTS
from motet.server.prepare import prepare
from motet.server.query import Display, Query, display, prompt_of
from motet.server.shapes.requests import Body, Candidate, ChatCompletionRequest, Message, StreamOptions, TextPart
from motet.settings import models_in
from tests.server.conftest import make_service

HOW = "a field that no policy knows is closed: give it a line in motet/server/guard.py"
CLOSED = Allow()


def routes() -> Iterator[APIRoute]:
    for router in ROUTERS:
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def bodies() -> Iterator[tuple[APIRoute, type[BaseModel]]]:
    for route in routes():
        if route.path in ENDPOINTS and route.body_field is not None:
            yield from ((route, kind) for kind in models_in(route.body_field.field_info.annotation))


def test_every_field_of_an_endpoint_that_can_be_opened_has_a_line() -> None:
    for route, kind in bodies():
        names = {field.alias or name for name, field in kind.model_fields.items()}
        assert names <= FIELDS.keys(), f"{route.path}: {HOW}"
    inside = ((Message, MESSAGE), (TextPart, PART), (StreamOptions, STREAM), (Candidate, FIELDS))
    for kind, lines in inside:
        assert kind.model_fields.keys() <= lines.keys(), HOW


def test_bodies_are_read_where_the_guard_stands() -> None:
    assert all(isinstance(route, JsonRoute) for route, _ in bodies())
    assert len({route.path for route, _ in bodies()}) >= 6


def test_what_is_shown_and_drawn_has_a_line() -> None:
    assert {field.name for field in fields(Display)} == SHOWN.keys(), HOW
    assert {field.name for field in fields(SamplingParams)} == DRAWN.keys(), HOW
    assert set(STEERS) < DRAWN.keys()


def test_every_opening_is_explained_and_opens_something() -> None:
    assert Allow.model_fields.keys() == GIVES_AWAY.keys()
    used = {line.opening for line in (*FIELDS.values(), *MESSAGE.values())} | set(ENDPOINTS.values()) - {None}
    elsewhere = {"exact_logprobs", "lifted_masks", "members", "cached_tokens"}
    assert Allow.model_fields.keys() == (used | elsewhere) - {None}


def test_endpoints_that_nobody_has_decided_about_are_not_there() -> None:
    grant = Grant("k", "p", PolicyConfig(allow=Allow.model_validate(dict.fromkeys(_switches(), True))))
    for route in routes():
        known = route.path in ENDPOINTS or route.path.startswith((*BELOW, "/v1/models/")) or route.path in PROBES
        if not known:
            with pytest.raises(LookupError):
                check_endpoint("GET", route.path, grant)
    with pytest.raises(LookupError):
        check_endpoint("POST", "/v1/models/load", grant)
    for path in ("/", "/nothing", "/v1/chat/completions/", "//v1/score", "/v1/admin/reload"):
        with pytest.raises(LookupError):
            check_endpoint("GET", path, grant)


def _switches() -> list[str]:
    return [name for name, field in Allow.model_fields.items() if field.annotation is bool]


# what asks for something, of each field that is not open to everybody
ASKS: dict[str, Any] = {
    "temperature": 0.1, "n": 2, "best_of": 2, "seed": 5, "logprobs": 0, "top_logprobs": 1, "prompt_logprobs": 0,
    "echo": True, "trace": True, "allowed_token_ids": [1], "bad_words": ["a"], "logit_bias": {"1": 0.1},
    "response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}, "guided_json": {"a": 1},
    "guided_regex": "a", "guided_choice": ["a"], "guided_grammar": "start: /a/", "presence_penalty": 0.1,
    "frequency_penalty": -0.1, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True, "stop_token_ids": [1],
    "continue_final_message": True, "add_generation_prompt": False, "add_special_tokens": False,
    "chat_template_kwargs": {"a": 1}, "truncate_prompt_tokens": 3, "composition": {}, "guidance_scale": 1.0,
    "negative_prompt": "", "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False,
    "tools": [{"type": "function"}], "tool_choice": "required", "reasoning_effort": "low", "thinking_token_budget": 0,
    "speculation": "auto", "logprob_token_ids": [1], "answer_prefix": "a",
    "top_p": 0.5, "top_k": 2, "min_p": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, line in FIELDS.items() if line.opening is not None])
def test_a_closed_field_is_refused_by_its_name_and_opened_by_its_opening(name: str) -> None:
    body = {"model": "m", name: ASKS[name]} if name in ASKS else pytest.fail(f"say in ASKS what asks for {name}")
    closed = Allow(max_temperature=1) if FIELDS[name].opening == "filters" else CLOSED  # they filter what is drawn
    with pytest.raises(NotAllowed, match=f"'{name}'") as refused:
        check_fields(body, closed)
    assert refused.value.param == name
    assert refused.value.opening == FIELDS[name].opening
    check_fields({"model": "m", name: None}, closed)
    for idle in FIELDS[name].idle:
        check_fields({"model": "m", name: idle}, closed)
    opening = FIELDS[name].opening
    assert opening is not None
    top: dict[str, Any] = {"max_temperature": 2.0, "max_n": 8, "logprobs": 5, "logit_bias": 100.0}
    check_fields(body, closed.model_copy(update={opening: top.get(opening, True)}))


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"speculate_harder": 1}, "speculate_harder"),
    ({"extra_body": {"trace": True}}, "extra_body"),
    ({"stream_options": {"include_usage": True, "include_trace": True}}, "stream_options.include_trace"),
    ({"candidates": ["m", {"model": "m", "composition": {}}]}, "candidates.1.composition"),
    ({"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages.0.prefix"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]}, "messages.0.content.0.x"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": "So"}]}, "messages.1"),
]


@pytest.mark.parametrize(("body", "param"), UNKNOWN)
def test_fields_that_nobody_knows_are_closed_wherever_they_stand(body: dict[str, Any], param: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        check_fields(body, CLOSED)
    assert refused.value.param == param


@pytest.mark.parametrize("body", [None, [], "a", 3, {"messages": 3, "candidates": {}}, {"n": "2", "logit_bias": []}])
def test_what_is_no_request_is_left_to_its_schema(body: Any) -> None:
    check_fields(body, CLOSED)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", 0.7, 0.7), ("temperature", 0.71, None), ("n", 4, 4), ("n", 5, None), ("logprobs", 3, 3),
        ("logprobs", 4, None), ("logprobs", True, True), ("logit_bias", {"1": -2.0}, True),
        ("logit_bias", {"1": 1, "2": -2.5}, None),
    ],
)  # fmt: skip
def test_bounds(name: str, value: Any, allowed: Any) -> None:
    allow = Allow(max_temperature=0.7, max_n=4, logprobs=3, logit_bias=2.0)
    if allowed is not None:
        check_fields({name: value}, allow)
        return
    with pytest.raises(NotAllowed, match="beyond"):
        check_fields({name: value}, allow)


def draws(**asked: Any) -> SamplingParams:
    return SamplingParams(max_tokens=4, temperature=0.0, **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"allowed_token_ids": (1,)}, {"bad_words": ((1,),)}, {"logit_bias": ((1, 0.5),)}, {"grammar": object()},
        {"min_tokens": 1}, {"ignore_eos": True}, {"stop_token_ids": (3,)}, {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5}, {"repetition_penalty": 2.0}, {"trace_top": 0},
    ],
)  # fmt: skip
def test_a_draw_is_guarded_whatever_the_endpoint_calls_its_fields(asked: dict[str, Any]) -> None:
    check_drawn(draws(), Display(), CLOSED)
    with pytest.raises(NotAllowed, match=next(iter(asked))):
        check_drawn(draws(**asked), Display(), CLOSED)


def test_a_draw_is_no_hotter_than_allowed() -> None:
    with pytest.raises(NotAllowed, match="temperature"):
        check_drawn(SamplingParams(max_tokens=1, temperature=0.5), Display(), Allow(max_temperature=0.4))


@pytest.mark.parametrize("name", [field.name for field in fields(Display)])
def test_what_is_shown_is_guarded_whatever_the_endpoint_calls_its_fields(name: str) -> None:
    harmless = {"stops", "include_stop", "min_tokens"}
    others: dict[str, Any] = {"skip_special_tokens": False, "logprobs": 0, "prompt_logprobs": 0, "trace": 0}
    shown: dict[str, Any] = {name: others.get(name, True)}
    if name in harmless:
        return
    with pytest.raises(NotAllowed, match=name):
        check_shown(Display(**shown), 1, CLOSED)


def test_logprobs_are_not_shown_of_draws_that_the_client_steers() -> None:
    allow = Allow(logprobs=5, logit_bias=1.0)
    check_drawn(draws(logit_bias=((1, 0.5),)), Display(), allow)
    check_drawn(draws(), Display(logprobs=0), allow)
    with pytest.raises(NotAllowed, match="beside 'logit_bias'"):
        check_drawn(draws(logit_bias=((1, 0.5),)), Display(logprobs=0), allow)
    steered = Allow(logprobs=5, logit_bias=1.0, steered_logprobs=True)
    check_drawn(draws(logit_bias=((1, 0.5),)), Display(logprobs=0), steered)


@pytest.mark.parametrize("asked", [{"logprobs": True}, {"n": 2}, {"bad_words": ["a"]}, {"trace": True}])
async def test_what_an_endpoint_lets_pass_is_judged_where_jobs_are_made(asked: dict[str, Any]) -> None:
    service = make_service()
    policies = {"p": PolicyConfig(default=True, models={"large": None})}
    access = Access.of(service.config, policies)
    view = service.renewed(service.registry, access).under(access.everybody)
    for extra, passes in (({}, True), (asked, False)):
        messages = [{"role": "user", "content": "a"}]
        body = ChatCompletionRequest.model_validate({"model": "large", "messages": messages, **extra})
        query = Query(
            request_id="r",
            form="chat",
            fields=body,
            targets=(body,),
            prompts=(prompt_of(None, body.messages),),
            display=display(body, logprobs=0 if body.logprobs else None),
            max_tokens=1,
        )
        if passes:
            assert len(await prepare(view, query)) == 1
        else:
            with pytest.raises(NotAllowed):
                await prepare(view, query)


def test_requests_are_bodies_of_ours() -> None:
    """Or `extra` would drop what the guard should see."""
    assert all(issubclass(kind, Body) for _, kind in bodies())


PARTS = re.compile(r"info\.name|\.role!r|\.model!r|\bmodel!r|\brole!r|gate\.name|stream\.model")


def test_refusals_that_name_a_part_have_a_text_for_those_who_may_not_know_it() -> None:
    """What is repeated of a request is not searched for names, so whoever writes one into a refusal says what else to
    tell: by `public`, or by a code of parts. As far as a call shows it by itself."""
    found: list[str] = []
    for file in (Path(__file__).parents[2] / "motet" / "server").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id in ("invalid", "ApiError")
            ):
                code = any(isinstance(part, ast.Constant) and part.value in CODES_OF_PARTS for part in ast.walk(call))
                public = any(keyword.arg == "public" for keyword in call.keywords)
                if PARTS.search(ast.unparse(call)) and not code and not public:
                    found.append(f"{file.name}:{call.lineno}")
    assert found == []
