"""Points 16 and 17: how the process lives, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.soak.client import Answer
from tests.soak.points.lab import Check, Lab, complete, send_all
from tests.soak.points.stalls import long_family
from tests.soak.process import Server

TOLD_S = 2.0
GONE_S = 5.0


def ends_are_told(lab: Lab) -> list[Check]:
    return [_dead_engine(lab), *_two_signals(lab)]


def _dead_engine(lab: Lab) -> Check:
    """A BaseException in the engine: everybody who waits hears of it, and so do the probes."""
    trigger = lab.scratch / "trigger"
    with lab.other(prefix=("-m", "tests.soak.points.saboteur", str(trigger))) as server:
        before, told, health = asyncio.run(_sabotaged(server, trigger))
    fine = before.status == 200 and all(answer.status in (500, 503) for answer in told) and health == 503
    longest = max(answer.seconds for answer in told)
    saw = f"before {before.status}; then {[a.status for a in told]} within {longest:.1f} s; /health {health}"
    return Check("a BaseException in the engine", fine and longest < TOLD_S, saw)


async def _sabotaged(server: Server, trigger: Path) -> tuple[Answer, list[Answer], int]:
    before = (await send_all(server.url, [complete()]))[0]
    await asyncio.to_thread(trigger.touch)
    told = await send_all(server.url, [complete() for _ in range(4)], 8)
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as client:
        return before, told, (await client.get("/health")).status_code


def _two_signals(lab: Lab) -> list[Check]:
    """The second SIGTERM ends the server at once and cleanly."""
    with lab.other(file=long_family(lab)) as server:
        seconds = asyncio.run(_terminated_twice(server))
        log, status = server.log_text(), server.process.poll()
    clean = status is not None and status in (0, 143, -signal.SIGTERM) and "terminate called" not in log
    saw = f"status {status} after {seconds:.1f} s: {log[-120:]!r}"
    return [Check("a second SIGTERM", clean and seconds < GONE_S and "Traceback" not in log, saw)]


async def _terminated_twice(server: Server) -> float:
    body: dict[str, Any] = {"model": "long", "prompt": [7] * 3000, "max_tokens": 4000, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        running = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(3)]
        await asyncio.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await asyncio.to_thread(_wait, server, 20)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return time.monotonic() - began


def _wait(server: Server, seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(seconds)


def bad_starts(lab: Lab) -> list[Check]:
    """What cannot work is refused before it is served, in one clear line."""
    models = {"large": lab.family / "large"}
    infinite = lab.scratch / "infinite.yaml"
    infinite.write_text(f"models: {{large: {{path: {models['large']}}}}}\nengine: {{kv_cache_gib: .inf}}\n")
    deep = lab.scratch / "deep.yaml"
    deep.write_text("models: " + "[" * 20_000 + "]" * 20_000)
    bomb = lab.scratch / "bomb.yaml"
    bomb.write_text(_bomb())
    file = lab.scratch / "no-folder"
    file.write_text("")
    full = {"MOTET_CACHE": str(file / "inside")}
    return [
        lab.refused("a KV cache of 1e30 GiB", "--kv-cache-gib", "1e30", names="kv_cache_gib"),
        lab.refused("a KV cache of 100,000 GiB", "--kv-cache-gib", "100000", names="kv_cache_gib"),
        lab.refused("a KV cache for half a token", "--kv-cache-gib", "1e-9", names="kv_cache_gib"),
        lab.refused("a KV cache of .inf", file=infinite, names="kv_cache_gib"),
        lab.command("YAML 20,000 deep: serve", "serve", str(deep)),
        lab.command("YAML 20,000 deep: config show", "config", "show", str(deep)),
        lab.command("a YAML bomb: config show", "config", "show", str(bomb)),
        lab.command("a YAML bomb: serve", "serve", str(bomb)),
        lab.command("a cache that is no folder", "serve", "demo", environment=full, names=file.name),
        lab.refused("weights that are NaN", file=lab.operator_file({"broken": _nan_model(lab)}), names="values of"),
        _busy_port(lab),
    ]


def _bomb() -> str:
    """A billion laughs: nine lists, each nine times the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join([*lines, "models: {large: {path: *a9}}", "compositions: {x: *a9}"]) + "\n"


def _nan_model(lab: Lab) -> Path:
    import torch
    from transformers import LlamaForCausalLM, logging

    logging.disable_progress_bar()
    folder = lab.copy("with-nan")
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    model.save_pretrained(folder)
    return folder


def _busy_port(lab: Lab) -> Check:
    """Said before models are read: here there is no model to read."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        began = time.monotonic()
        check = lab.command("a busy port", "serve", str(lab.launch.file), "--port", port, names=port)
    saw = f"{check.saw} (after {time.monotonic() - began:.1f} s)"
    return Check(check.what, check.held and "serving" not in check.saw, saw)
