"""Points 15 and 18: what a client reads when its request is bad, and what the description says."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx

from tests.soak.client import openai_message
from tests.soak.points.lab import CHAT, COMPLETIONS, Check, Lab, ask, complete, raw, structured
from tests.soak.points.stalls import retry_after
from tests.soak.raw import says

DEPTHS = (100, 320, 1000, 10_000, 1_000_000)
DIGITS = (300, 4299, 4300, 4301, 100_000)
INSIDES = (".rs:", ".py:", "/root/", "/home/", "/src/", "backtrace", "Traceback", "panicked", "site-packages")
PANICS = (
    "start: /(/", 'start: "a"{5,2}', "start: %json {", "start: @x", "start: <[1]>", "start: <[999999]>",
    "start: <nothing>",
    'start: %json {"type": 5}', "start[capture", 'start: "\\ud800"', "start: /[z-a]/", "start: /a{9,1}/",
    "A: A\nstart: A",
    "start: %regex {}", 'start: %regex {"substring_chars": 5}', 'start: ""', "start: (", "\x00", "%llguidance {",
    "%llguidance 5",
    'start: %json {"$ref": "#/x"}', 'start: a\na[stop="", suffix=/x/]: /b/', "start: a::b", "start: /\\xff/",
    "start: ~A\nA: /a/",
)  # fmt: skip
MALFORMED: dict[str, bytes] = {
    "no HTTP": b"GARBAGE\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "length of letters": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
    "bad chunk": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "header of 20 MB": b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20_000_000 + b"\r\n\r\n",
    "a NUL": b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "HTTP 9": b"GET /nothing HTTP/9.9\r\nhost: a\r\n\r\n",
}


def bad_input(lab: Lab) -> list[Check]:
    """400 in OpenAI's shape, short, and without the server's insides."""
    deep = [raw(COMPLETIONS, '{"model":"large","prompt":' + "[" * depth + "]" * depth + "}") for depth in DEPTHS]
    objects = [raw(CHAT, '{"model":"large","x":' + '{"a":' * depth + "1" + "}" * (depth + 1)) for depth in DEPTHS]
    digits = [raw(COMPLETIONS, '{"model":"large","prompt":"a","max_tokens":' + "9" * count + "}") for count in DIGITS]
    inner = [
        raw(COMPLETIONS, '{"model":"large","prompt":"a","composition":' + "[" * depth + "]" * depth + "}")
        for depth in DEPTHS
    ]
    return [
        lab.attack("lists nested up to a million deep", deep),
        lab.attack("objects nested up to a million deep", objects),
        lab.attack("a composition nested", inner),
        lab.attack("numbers of up to 100,000 digits", digits),
        lab.attack("an unknown model of 7 MB", [complete("m" * 7_000_000)]),
        lab.attack("an unknown strategy of 1 MB", [complete(composition={"strategy": "s" * 1_000_000})]),
        lab.attack("an unknown field of 1 MB", [complete(composition={"strategy": "eft", "f" * 1_000_000: 1})]),
        lab.attack("best_of of 1 MB", [complete(best_of="b" * 1_000_000)]),
        lab.attack("a role of 1 MB", [ask(CHAT, model="large", messages=[{"role": "r" * 1_000_000, "content": "a"}])]),
        lab.attack("a logit_bias of 1 MB", [complete(logit_bias={"l" * 1_000_000: 1})]),
        lab.attack("a regex of 1 MB", [structured(regex="(" + "a" * 1_000_000)]),
        _no_insides(lab),
        *_malformed(lab),
    ]


def _no_insides(lab: Lab) -> Check:
    seen: list[str] = []
    for grammar in PANICS:
        answer = httpx.post(f"{lab.server().url}{COMPLETIONS}", content=structured(grammar=grammar).body, timeout=30)
        shown = [inside for inside in INSIDES if inside in answer.text]
        if shown or answer.status_code >= 500 or len(answer.content) > 2048:
            seen.append(f"{grammar!r}: {answer.status_code} {shown}, {len(answer.content)} bytes")
    return Check(f"{len(PANICS)} broken grammars", not seen, "; ".join(seen)[:600] or "no insides shown")


def _malformed(lab: Lab) -> list[Check]:
    checks: list[Check] = []
    for what, sent in MALFORMED.items():
        got = asyncio.run(says(lab.server().url, sent, 3))
        head, _, body = got.partition(b"\r\n\r\n")
        fine = head.startswith(b"HTTP/1.1 4") and openai_message(body.decode("utf-8", "replace")) is not None
        fine = fine or (what.startswith("header") and not got)  # closed while it still came
        checks.append(Check(f"malformed HTTP: {what}", fine, repr(got[:60] + b" ... " + body[:80])))
    return checks


def description(lab: Lab) -> list[Check]:
    """OpenAPI describes what chat takes; a public address without keys is warned of; Retry-After means something."""
    spec = httpx.get(f"{lab.server().url}/openapi.json").json()
    schemas = spec["components"]["schemas"]
    named = schemas["ChatCompletionRequest"]["properties"]["messages"]["items"]["$ref"].rpartition("/")[2]
    content = json.dumps(schemas[named]["properties"]["content"])
    broken = [ref for ref in _refs(spec) if ref.rpartition("/")[2] not in schemas]
    with lab.other("--host", "0.0.0.0") as server:
        public = server.log_text().lower()
    return [
        Check("chat's messages take parts", "array" in content, f"content of {named}: {content[:120]}"),
        Check("every reference is there", not broken, f"{broken[:5]}"),
        Check("a public address without keys", "key" in public and "warn" in public, public[-160:]),
        retry_after(lab),
    ]


def _refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        tree = cast("dict[str, Any]", value)
        own = [tree["$ref"]] if isinstance(tree.get("$ref"), str) else []
        return own + [ref for item in tree.values() for ref in _refs(item)]
    return [ref for item in cast("list[Any]", value) for ref in _refs(item)] if isinstance(value, list) else []
