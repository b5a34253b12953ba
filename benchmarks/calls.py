"""Do calls of tools and JSON answers of real checkpoints, composed, always keep to their schemas?

    python -m benchmarks.calls MODELS qwen-0.5b --amateur qwen-0.5b --out benchmarks/results/calls.json

Over HTTP, in process, from the embedded engine. The composition: contrastive decoding of the checkpoint against
AMATEUR, or classifier-free guidance of the checkpoint alone. Five schemas with eight questions each, in turn; every
question is sent with the schema as a tool (`tool_choice` in turn auto, required and by name, every other one streamed),
and as `response_format`. Counted of each kind: answers that parse and keep to the schema, those that ended at
`max_tokens`, and statuses; of auto also how many called nothing, and how many calls parse without keeping to their
schema: where a model may answer in words, no grammar holds the JSON that it writes in a fence.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jsonschema_rs
import yaml

from benchmarks.common import report
from motet.engines.base import Engine
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service

MAX_TOKENS = 128
TEMPERATURE = 0.7
AT_ONCE = 16
GUIDANCE: dict[str, Any] = {"guidance_scale": 1.5}


class Subject(NamedTuple):
    """A function that can be called, and what it can be asked about."""

    name: str
    description: str
    schema: dict[str, Any]
    questions: tuple[str, ...]


def _object(**properties: Any) -> dict[str, Any]:
    closed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


TEXT = {"type": "string", "maxLength": 40}
CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Quito", "Perth", "Delhi", "Turin")
SUBJECTS = (
    Subject(
        "get_weather",
        "The weather in a city.",
        _object(city=TEXT, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
        tuple(f"What is the weather in {city} now?" for city in CITIES),
    ),
    Subject(
        "add_event",
        "Puts an event into the calendar.",
        _object(
            title=TEXT,
            day={"type": "integer", "minimum": 1, "maximum": 31},
            guests={"type": "array", "items": TEXT, "maxItems": 3},
        ),
        tuple(f"Plan a dinner with {name} on the {day}th." for name, day in zip(CITIES, range(4, 12), strict=True)),
    ),
    Subject(
        "convert",
        "Converts an amount of money.",
        _object(amount={"type": "number"}, source={"type": "string", "pattern": "^[A-Z]{3}$"}, target=TEXT),
        tuple(f"How many euros are {amount} dollars?" for amount in (5, 12.5, 99, 1, 1000, 0.5, 31, 8)),
    ),
    Subject(
        "find_route",
        "The way between two places.",
        _object(
            start=_object(name=TEXT),
            end=_object(name=TEXT),
            mode={"anyOf": [{"type": "null"}, {"enum": ["walk", "bus", "train"]}]},
        ),
        tuple(f"How do I get from {one} to {other} by train?" for one, other in itertools.pairwise((*CITIES, "Bern"))),
    ),
    Subject(
        "set_alarm",
        "Sets an alarm.",
        _object(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, repeat={"type": "boolean"}),
        tuple(f"Wake me at {hour}:30 every day." for hour in range(5, 13)),
    ),
)


def asked(number: int) -> tuple[Subject, list[dict[str, str]]]:
    subject = SUBJECTS[number % len(SUBJECTS)]
    question = subject.questions[number // len(SUBJECTS) % len(subject.questions)]
    return subject, [{"role": "user", "content": question}]


def tool_body(number: int) -> dict[str, Any]:
    """The subject's function among all five."""
    subject, messages = asked(number)
    tools = [
        {"type": "function", "function": {"name": s.name, "description": s.description, "parameters": s.schema}}
        for s in SUBJECTS
    ]
    by_name = {"type": "function", "function": {"name": subject.name}}
    choice = ("auto", "required", by_name)[number % 3]
    several = {"parallel_tool_calls": number % 15 == 0}  # small models go on with calls to the limit
    return {"messages": messages, "tools": tools, "tool_choice": choice, "stream": number % 2 == 1, **several}


def json_body(number: int) -> dict[str, Any]:
    subject, messages = asked(number)
    schema = {"name": subject.name, "schema": subject.schema}
    return {"messages": messages, "response_format": {"type": "json_schema", "json_schema": schema}}


async def message_of(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, dict[str, Any], str | None]:
    """(status, message, finish_reason), put together from the pieces of a stream."""
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return answer.status_code, answer.json(), None
    if not body.get("stream"):
        choice = answer.json()["choices"][0]
        return 200, choice["message"], choice["finish_reason"]
    return 200, *streamed(answer.text)


def streamed(events: str) -> tuple[dict[str, Any], str | None]:
    calls: dict[int, dict[str, Any]] = {}
    content, finish = "", None
    for choice in _choices(events):
        finish = choice["finish_reason"] or finish
        content += choice["delta"].get("content") or ""
        for piece in choice["delta"].get("tool_calls", ()):
            call = calls.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
            call["function"]["name"] += piece["function"].get("name", "")
            call["function"]["arguments"] += piece["function"]["arguments"]
    return {"content": content or None, "tool_calls": list(calls.values())}, finish


def _choices(events: str) -> Iterator[dict[str, Any]]:
    for line in events.splitlines():
        if line.startswith("data: {"):
            yield from json.loads(line.removeprefix("data: ")).get("choices", [{"finish_reason": "error", "delta": {}}])


def keeps(text: str, schema: Mapping[str, Any]) -> bool:
    try:
        return jsonschema_rs.is_valid(dict(schema), json.loads(text))
    except ValueError:
        return False


def judged_calls(message: Mapping[str, Any], *, may_answer: bool) -> str:
    """`called` where every call keeps to its schema, `parsed` where each names a function and is an object, `answered`
    where there is none; what may not be of these is `wrong`."""
    schemas = {subject.name: subject.schema for subject in SUBJECTS}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if not calls:
        return "answered" if may_answer and message["content"] else "wrong"
    if not all(call["name"] in schemas and keeps(call["arguments"], {"type": "object"}) for call in calls):
        return "wrong"
    if all(keeps(call["arguments"], schemas[call["name"]]) for call in calls):
        return "called"
    return "parsed" if may_answer else "wrong"  # what a model writes of its own accord no grammar holds


async def ask(client: httpx.AsyncClient, composed: Mapping[str, Any], count: int) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {"tools": Counter(), "json": Counter()}
    room = asyncio.Semaphore(AT_ONCE)

    async def one(kind: str, number: int) -> None:
        body = tool_body(number) if kind == "tools" else json_body(number)
        fixed = {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": number}
        async with room:
            status, message, finish = await message_of(client, {**body, **fixed, **composed})
        counts[kind][f"status {status}"] += 1
        if (answered := sum(sum(c[s] for s in c if s.startswith("status")) for c in counts.values())) % 20 == 0:
            print(f"{answered} of {2 * count} answers", file=sys.stderr)
        counts[kind][f"finish {finish}"] += 1
        if status != 200:
            print(status, message, file=sys.stderr)
            return
        if kind == "json":
            verdict = "valid" if keeps(message["content"], asked(number)[0].schema) else "wrong"
        else:
            verdict = judged_calls(message, may_answer=body["tool_choice"] == "auto")
        counts[kind][verdict] += 1
        if verdict == "wrong":
            print(kind, number, finish, message, file=sys.stderr)

    await asyncio.gather(*(one(kind, number) for kind in counts for number in range(count)))
    return counts


def loaded(folders: Mapping[str, Any], dtype: str) -> tuple[Engine, Registry]:
    settings = {"dtype": dtype, "max_model_len": 2048, "kv_cache_gib": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "models.yaml")
        file.write_text(yaml.safe_dump({"models": dict(folders), "engine": settings}))
        return load_engine(load(file))


async def measured(models: Path, name: str, amateur: str | None, dtype: str, count: int) -> dict[str, Any]:
    folders = {"base": {"path": str((models / name).resolve())}}
    if amateur is not None:
        folders["amateur"] = {"path": str((models / amateur).resolve())}
    composition = {"composition": {"strategy": "contrastive", "amateur": "amateur"}} if amateur else GUIDANCE
    engine, registry = loaded(folders, dtype)
    service = Service.assemble(ServerConfig(), engine, registry)
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=3600) as client:
            counts = await ask(client, {"model": "base", **composition}, count)
    finally:
        await engine.close()
    asked_for = {"model": name, "dtype": dtype, "composed": composition, "requests": count}
    return {**asked_for, **{kind: dict(c) for kind, c in counts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of checkpoints")
    parser.add_argument("name", help="the checkpoint in it that answers")
    parser.add_argument("--amateur", help="the smaller one that it is decoded against; without: guidance")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = asyncio.run(
        measured(arguments.models, arguments.name, arguments.amateur, arguments.dtype, arguments.requests)
    )
    report("calls", result, arguments.out)


if __name__ == "__main__":
    main()
