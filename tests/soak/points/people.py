"""Points 9 and 11 to 14: clients that hold what others need, keys, secrets, and checkpoints that carry code."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import httpx

from tests.soak.connections import PATIENCE_S, SCENARIOS, play
from tests.soak.points.lab import Check, Lab
from tests.soak.process import Server, ServerEnded, start
from tests.soak.raw import post, says

FORGED = "FORGED"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
SLOW_CLIENTS = ("unread", "slow_headers", "slow_bodies", "silent", "descriptors")
PROMPT = "Where was Lodry Vell born? The town of the people is a town and a work. " * 2


def slow_clients(lab: Lab) -> list[Check]:
    """Clients that do not read, do not write, or are too many."""
    outcomes = {name: play(lab.launch, SCENARIOS[name], PATIENCE_S) for name in SLOW_CLIENTS}
    return [Check(name, outcome.held, json.dumps(outcome.numbers)) for name, outcome in outcomes.items()]


def empty_keys(lab: Lab) -> list[Check]:
    """An empty key is refused at the start, and a key of the file is not lost."""
    models = {"large": lab.family / "large"}
    blank = lab.operator_file(models, server={"api_keys": [""]})
    spaces = lab.operator_file(models, server={"api_keys": ["  "]})
    keyed = lab.operator_file(models, server={"api_keys": ["sk-secret"]})
    return [
        lab.refused("--api-key ''", "--api-key", "", names="key"),
        lab.refused("api_keys: ['']", file=blank, names="key"),
        lab.refused("api_keys of spaces", file=spaces, names="key"),
        lab.refused('environment [""]', environment={"MOTET_SERVER__API_KEYS": '[""]'}, names="key"),
        _keys_stay(lab, keyed),
    ]


def _keys_stay(lab: Lab, keyed: Any) -> Check:
    what = "an empty variable beside the file's keys"
    try:
        with lab.other(file=keyed, environment={"MOTET_SERVER__API_KEYS": ""}) as server:
            status = httpx.get(f"{server.url}/v1/models").status_code
    except Exception as refusal:
        return Check(what, "key" in str(refusal).lower(), f"refused: {str(refusal)[-160:]}")
    return Check(what, status == 401, f"without a key: {status}")


def cached_prefixes(lab: Lab) -> list[Check]:
    """What one key has asked, another cannot guess from `cached_tokens`; a `cache_salt` separates likewise."""
    with lab.other("--api-key", "first-key", "--api-key", "second-key") as server:
        own = [_cached(server, "first-key", None) for _ in range(2)]
        other = _cached(server, "second-key", None)
        salted = _cached(server, "first-key", "pepper")
        again = _cached(server, "first-key", "pepper")
    return [
        Check("the cache works for its own key", own[0] == 0 and own[1] > 0, f"cached {own}"),
        Check("another key finds nothing", other == 0, f"cached {other}"),
        Check("another salt finds nothing", salted == 0 and again > 0, f"cached {salted}, then {again}"),
    ]


def _cached(server: Server, key: str, salt: str | None) -> int:
    body = {"model": "large", "prompt": PROMPT, "max_tokens": 1, **({"cache_salt": salt} if salt else {})}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def _forge(url: str) -> None:
    """Every text of a request that may reach the log, with a line of its own in it."""
    forged = f"x\n{FORGED}\x1b[31m\x00\x85\u2028{FORGED}"
    quoted = f"/x%0a{FORGED}%1b%5b31m%00%c2%85%e2%80%a8{FORGED}"
    bodies: list[dict[str, Any]] = [
        {"model": forged, "prompt": "a"},
        {"model": "large", "prompt": "a", forged: 1},
        {"model": "large", "prompt": "a", "composition": {"strategy": forged}},
        {"model": "large", "prompt": forged, "max_tokens": 1, "user": forged},
        {"model": "large", "prompt": "a", "structured_outputs": {"grammar": forged}},
    ]
    for body in bodies:
        await says(url, post("/v1/completions", body, "connection: close\r\n"))
    named = b"x-request-id: a\x1b[31m\xc2\x85" + FORGED.encode()
    head = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    await says(url, b"GET " + quoted.encode() + head + b"\r\n")
    await says(url, b"GET /v1/models/" + quoted[1:].encode() + head + b"\r\n")
    await says(url, b"GET /tokenizer_info?model=" + quoted[1:].encode() + head + b"\r\n")
    await says(url, b"GET /v1/models" + head + named + b"\r\n\r\n")
    await says(url, FORGED.encode() + b" / HTTP/1.1\r\n\r\n")
    await says(url, b"\x1b[31m\x00" + FORGED.encode() + b"\r\n\r\n")


def forged_logs(lab: Lab) -> list[Check]:
    """No input begins a line of the log, or brings a control character into it."""
    checks: list[Check] = []
    for kind in ("plain", "json"):
        with lab.other("--log-format", kind, "--log-level", "debug") as server:
            asyncio.run(_forge(server.url))
            text = server.log_text()
        forged = [line for line in text.split("\n") if line.startswith(FORGED)]
        control = sorted({repr(sign) for sign in CONTROL.findall(text)})
        saw = f"{len(forged)} forged lines, control characters {control}"
        checks.append(Check(f"{kind} log", not forged and not control, saw))
    return checks


MARK = "code-of-the-checkpoint-ran"


def carried_code(lab: Lab) -> list[Check]:
    """A checkpoint with code of its own is refused by name: nothing is asked, nothing runs."""
    return [_carried(lab, place) for place in ("config.json", "tokenizer_config.json")]


def _carried(lab: Lab, place: str) -> Check:
    folder, mark = lab.copy(f"carrying-{place}"), lab.scratch / f"{place}-{MARK}"
    described = json.loads((folder / place).read_text())
    classes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    described |= {"auto_map": classes, "model_type": "evil", "tokenizer_class": "Evil"}
    (folder / place).write_text(json.dumps(described))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\n")
    launch = replace(lab.launch, file=lab.operator_file({"carrying": folder}))
    try:
        server = start(launch, stdin=b"y\n" * 50)
        said, served = server.log_text(), True
        server.discard()
    except ServerEnded as ended:
        said, served = str(ended), False
    asked = "[y/N]" in said or "Do you wish" in said
    faults = [("its code ran", mark.exists()), ("asked", asked), ("served", served), ("traceback", "Traceback" in said)]
    seen = ", ".join(what for what, is_so in faults if is_so)
    return Check(f"auto_map in {place}", not seen, seen or f"refused: {said.strip()[-160:]}")
