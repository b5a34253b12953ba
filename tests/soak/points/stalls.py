"""Points 4, 6, 7, 8 and 10: one request that makes the others wait, and memory that grows with their number."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests.soak import fuzz
from tests.soak.client import is_busy
from tests.soak.generator import Generator, Request
from tests.soak.points.lab import CHAT, MIB, Check, Lab, Limits, ask, complete, raw, schema, send_all, structured
from tests.soak.process import Server

GROWTH_MIB_PER_10K = 80  # a short run's noise; the long run's aim is 1, and the faulty server had 380
MIXED, ROUNDS = 1000, 4  # the same requests again and again: what new ones fill is not looked at here
CONTEXT = 8192


def tokenizing(lab: Lab) -> list[Check]:
    """Texts far beyond every context are refused before they are cut into tokens."""
    words, one = "the town of " * 90_000, "x" * 7_900_000
    members: list[Any] = [{"model": "small", "prompt": words[: 240_000 + i], "weight": 0.1} for i in range(7)]
    product = {"strategy": "product", "members": ["large", *members]}
    limits = Limits(answer_s=5)
    return [
        lab.attack("1 MB of prompt", [complete(prompt=words)], limits),
        lab.attack("8 MB of one word", [complete(prompt=one)], limits),
        lab.attack("7 contexts of 240 kB", [complete(composition=product)], limits),
        lab.attack(
            "1 MB of message", [ask(CHAT, model="large-chat", messages=[{"role": "user", "content": words}])], limits
        ),
        lab.attack("/tokenize of 1 MB", [ask("/tokenize", model="large", prompt=words)], limits),
        lab.attack("128 continuations of 60 kB", [_continuations(words)], limits),
        lab.attack("1,024 bad words of 5 kB", [complete(bad_words=[words[i : i + 5000] for i in range(1024)])], limits),
    ]


def _continuations(words: str) -> Request:
    return ask("/v1/score", model="large", prompt="", continuations=[words[i : i + 60_000] for i in range(128)])


def compiling(lab: Lab) -> list[Check]:
    """While grammars compile, others are answered; when their clients have left, nobody waits for them."""
    alternatives = " | ".join(f'"{i:x}{i:x}"' for i in range(100_000))
    items: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    heavy = [
        structured(grammar=f"start: {alternatives}"),
        *(schema({**items, "minItems": 10**6 + k}) for k in range(4)),
    ]
    small = [structured(regex=f"[a-z]{{{k},40}}x") for k in range(45)]
    server = lab.server()
    ordinary = Request("GET", "/v1/models"), complete(), Request("GET", "/ready")
    times = asyncio.run(_beside(server, [*heavy, *small], ordinary))
    afterwards = asyncio.run(send_all(server.url, [structured(regex="[0-9]{3}z")], 5))[0]
    return [
        Check("others beside 50 grammars", max(times) < 1, f"longest of {len(times)}: {max(times):.2f} s"),
        Check(
            "a grammar after they left", afterwards.status == 200, f"{afterwards.status} in {afterwards.seconds:.2f} s"
        ),
        lab.attack("200,000 alternatives", [structured(choice=[f"{i:x}" for i in range(200_000)])]),
        lab.attack("2,000 properties", [schema({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}})]),
    ]


async def _beside(server: Server, load: list[Request], ordinary: tuple[Request, ...]) -> list[float]:
    """Seconds of ordinary requests while the load is on its way, for five seconds; then its clients leave."""
    loading = asyncio.create_task(send_all(server.url, load, 5))
    await asyncio.sleep(0.3)
    times: list[float] = []
    while not loading.done():
        for request in ordinary:
            times.append((await send_all(server.url, [request], 30))[0].seconds)
        await asyncio.sleep(0.1)
    await loading
    return times


def large_answers(lab: Lab) -> list[Check]:
    """Legal requests that cost much to write down, or to read."""
    ids = [5] * 1_000_000
    detailed: dict[str, Any] = {"ignore_eos": True, "trace": {"top": 20}, "logprobs": 20}
    limits = Limits(answer_s=60, grew_mib=500)
    return [
        lab.attack("a million stop ids", [complete(stop_token_ids=ids, min_tokens=50, max_tokens=60, n=32)], limits),
        lab.attack("a million allowed ids", [complete(allowed_token_ids=ids, max_tokens=60, n=32)], limits),
        lab.attack("64 choices with all details", [complete(**detailed, n=64, max_tokens=100)], limits),
        lab.attack("64 choices, streamed", [complete(**detailed, n=64, max_tokens=100, stream=True)], limits),
        lab.attack("the largest whole answer", [complete(**detailed, n=64, max_tokens=65)], limits),
        _one_long_choice(lab, limits),
        lab.attack("128 long continuations", [_scores(100)], limits),
        lab.attack("the largest scores", [_scores(47)], limits),
        lab.attack("8 MB of small objects", [raw("/v1/completions", "[" + "{}," * 2_600_000 + "{}]")], limits),
        lab.attack("8 MB of unknown fields", [complete(other=[{}] * 1_900_000)], limits),
        lab.attack(
            "a million keys", [raw("/v1/completions", json.dumps({f"k{i}": 1 for i in range(500_000)}))], limits
        ),
        lab.attack("8 MB of tokens", [ask("/detokenize", model="large", tokens=[399] * 1_500_000)], limits),
    ]


def _scores(tokens: int) -> Request:
    return ask("/v1/score", model="large", prompt="a", continuations=[[7] * tokens] * 128, trace={"top": 20})


def _one_long_choice(lab: Lab, limits: Limits) -> Check:
    """The prompt of a completion with all its log-probs, in one piece."""
    long = Lab(replace(lab.launch, file=long_family(lab)), lab.scratch)
    try:
        request = complete("long", prompt=[7] * 6200, max_tokens=1, prompt_logprobs=20, echo=True, logprobs=19)
        return long.attack("one choice of 6,200 tokens", [request], limits)
    finally:
        long.close()


def long_family(lab: Lab) -> Path:
    """An operator's file with one random model that is slow enough, and long enough, for a queue."""
    folder = lab.scratch / "long"
    if not folder.exists():
        from transformers import LlamaConfig, LlamaForCausalLM, logging

        logging.disable_progress_bar()
        config = LlamaConfig(
            vocab_size=400,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        shutil.copy(lab.family / "large" / "tokenizer.json", folder)
        described = json.loads((lab.family / "large" / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**described, "model_max_length": CONTEXT}))
    return lab.operator_file({"long": folder})


def behind_long_prompts(lab: Lab) -> list[Check]:
    """One token for a client beside four prompts of 4,000 tokens."""
    with lab.other(file=long_family(lab)) as server:
        times, quiet = asyncio.run(_one_token(server))
    saw = f"{statistics.median(quiet):.3f} s alone, {statistics.median(times):.3f} s (longest {max(times):.3f}) beside"
    return [Check("one token beside 4 × 4,000", max(times) < 0.3, saw)]


async def _one_token(server: Server) -> tuple[list[float], list[float]]:
    small = complete("long", max_tokens=1)
    quiet = [(await send_all(server.url, [small], 60))[0].seconds for _ in range(5)]
    long = [complete("long", prompt=[k + 2] * 4000, max_tokens=1) for k in range(4)]
    loading = asyncio.create_task(send_all(server.url, long, 120))
    times: list[float] = []
    await asyncio.sleep(0.05)
    while not loading.done():
        times.append((await send_all(server.url, [small], 60))[0].seconds)
    assert all(answer.status == 200 for answer in await loading), "the long prompts are legal"
    return times or [0.0], quiet


def memory_under_load(lab: Lab) -> list[Check]:
    """The slope of memory over requests of every kind, in the second half of the rounds. `mixed` is the long run."""
    server = lab.server()
    generator = Generator(*fuzz.describe(server.url), 10, 0.0)
    asyncio.run(_mixed(server, generator))
    slope = fuzz.slope(server.samples, warm_up=0.5)
    mib = [round(one.resident / MIB) for one in server.samples if one.requests]
    saw = f"{mib[0]} → {mib[-1]} MiB in {ROUNDS} × {MIXED} requests, {slope} MiB per 10,000 in the second half"
    return [Check("memory levels off", slope is not None and slope < GROWTH_MIB_PER_10K, saw)]


async def _mixed(server: Server, generator: Generator) -> None:
    indices = (index for _ in range(ROUNDS) for index in range(MIXED))

    async def worker() -> None:
        for index in indices:
            await send_all(server.url, [generator.request(index)], 30)
            server.answered += 1

    await asyncio.gather(*(worker() for _ in range(8)))


def retry_after(lab: Lab) -> Check:
    """A queue that takes long says so: its refusals name more than one second."""
    with lab.other(file=long_family(lab), environment={"MOTET_SERVER__MAX_CHOICES": "4"}) as server:
        answers = asyncio.run(_refused(server))
    named = sorted({answer.headers["retry-after"] for answer in answers if is_busy(answer)})
    return Check(
        "Retry-After from the queue's speed", bool(named) and named != ["1"], f"{named} in front of a long queue"
    )


async def _refused(server: Server) -> list[Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
        body = {"model": "long", "prompt": [7] * 4000, "max_tokens": 3000, "ignore_eos": True}
        running = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(4)]
        await asyncio.sleep(1.0)
        began, answers = time.monotonic(), list[Any]()
        while time.monotonic() - began < 6:
            answers += await send_all(server.url, [complete("long")], 5)
            await asyncio.sleep(1)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return answers
