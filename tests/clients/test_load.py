"""The load generator's arithmetic, what it says of bad input, and how it counts what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from motet_client.load.__main__ import main
from motet_client.load.report import percentile, summary, table
from motet_client.load.run import Load, Measured, run
from motet_client.load.work import Target, jobs, read_mix, read_prompts, synthetic_prompts


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (50, 2.5), (75, 3.25), (100, 4.0)])
def test_percentiles(q: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], q) == value


def test_the_times_of_one_answer() -> None:
    """Three tokens at 1.0, 1.5 and 2.5 s of its due time, ended at 3.0 s; another was refused."""
    told = Measured("a", due=7.0, sent=0.25, pieces=[1.0, 1.5, 2.5], end=3.0, prompt_tokens=5, output_tokens=3)
    group = summary([told, Measured("b", due=8.0, end=0.5, error="429")], seconds=4.0)
    everything = group["all"]
    assert (everything["requests"], everything["answered"], everything["errors"]) == (2, 1, {"429": 1})
    assert everything["ttft_ms"]["p50"] == 1000
    assert everything["itl_ms"]["p50"] == 750
    assert everything["tpot_ms"]["p50"] == 1000
    assert everything["e2e_ms"]["p99"] == 3000
    assert everything["output_tokens_per_s"] == 0.75
    assert group["each"]["b"]["e2e_ms"] is None


def test_targets_are_drawn_by_weight_and_the_same_with_the_same_seed() -> None:
    targets = [Target("a", 3, {"model": "a"}), Target("b", 1, {"model": "b", "max_tokens": 2})]
    prompts = synthetic_prompts(400, (2, 5), seed=1)
    drawn = jobs(400, targets, prompts, (4, 8), {"temperature": 0}, seed=1)
    assert drawn == jobs(400, targets, prompts, (4, 8), {"temperature": 0}, seed=1)
    # Binomial(400, 3/4): the fixed seed's draw is inside ±5 standard deviations
    assert abs(sum(job.label == "a" for job in drawn) - 300) < 44
    assert {job.body["max_tokens"] for job in drawn if job.label == "b"} == {2}
    assert {job.body["max_tokens"] for job in drawn if job.label == "a"} == {4, 5, 6, 7, 8}


def test_a_mix(tmp_path: Path) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([{"model": "a", "composition": {"strategy": "guidance"}, "weight": 2}]))
    (target,) = read_mix(file)
    assert (target.label, target.weight) == ("a guidance", 2)
    assert target.body == {"model": "a", "composition": {"strategy": "guidance"}}


def test_prompts_with_separators_that_end_no_line(tmp_path: Path) -> None:
    prompts = [{"prompt": "a\u2028b"}, {"prompt": "c\x85"}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\r\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts) + "\n", "utf-8")
    assert read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model NAME or --mix FILE"),
        (["--model", "a=x"], "'a=x'"),
        (["--model", "a=0"], "positive number"),
        (["--model", "a", "--prompts", "{folder}/prompts.jsonl"], "prompts.jsonl:2"),
        (["--mix", "{folder}/mix.json"], "entry 1"),
    ],
)
def test_bad_input_is_named(flags: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "mix.json").write_text('[{"weight": 1}]')
    with pytest.raises(SystemExit, match=said):
        main(["http://127.0.0.1:9/v1", *(flag.format(folder=tmp_path) for flag in flags)])


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
TEXT = b'data: {"choices": [{"text": "a\xe2\x80\xa8b"}]}\n\n'  # with a line separator of Unicode's in it
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"
# model → what the server sends before it hangs up, and how that is counted
ANSWERS: dict[str, tuple[bytes, str | None]] = {
    "good": (STREAM + b"\r\n" + TEXT + USAGE + DONE, None),
    "unended": (STREAM + b"\r\n" + TEXT + USAGE, "stream"),
    "cut": (CHUNKED + b"%x\r\n%b\r\n40\r\ndata: " % (len(TEXT), TEXT), "stream"),
    "cut-at-once": (CHUNKED, "stream"),
    "failed": (STREAM + b"\r\n" + TEXT + b'data: {"error": {"message": "engine stopped"}}\n\n' + DONE, "stream"),
    "garbled": (STREAM + b"\r\ndata: {nothing\n\n" + DONE, "stream"),
    "other": (STREAM + b'\r\ndata: {"choices": [7]}\n\n' + DONE, "stream"),
    "busy": (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}", "503"),
    "gone": (b"", "connection"),
    "silent": (b"...", "timeout"),
    "stuck": (CHUNKED + b"%x\r\n%b\r\n" % (len(TEXT), TEXT) + b"...", "timeout"),
}


@asynccontextmanager
async def canned() -> AsyncGenerator[str]:
    """A server that answers each model in its way; three dots are silence until the client leaves."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = json.loads(await reader.readexactly(int(size.partition(b":")[2])))
        sent, _ = ANSWERS[body["model"]]
        with closing(writer):
            writer.write(sent.removesuffix(b"..."))
            await writer.drain()
            if sent.endswith(b"..."):
                await reader.read()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/v1"


@pytest.mark.parametrize("rate", [None, 200.0])
async def test_every_request_is_answered_or_counted_with_its_error(rate: float | None) -> None:
    prompts = synthetic_prompts(4, (2, 2), seed=0)
    work = [job for name in ANSWERS for job in jobs(4, [Target(name, 1, {"model": name})], prompts, (4, 4), {}, 0)]
    waiting = [job for job in work if ANSWERS[job.label][1] == "timeout"]
    async with canned() as url:
        measured, seconds = await run(Load(url, {}, len(work), rate, 0.5, 0), waiting, warmup=0)
        others, more = await run(Load(url, {}, 3, rate, 60.0, 0), [job for job in work if job not in waiting], warmup=0)
    measured, seconds = [*measured, *others], seconds + more
    told = summary(measured, seconds)
    assert told["all"]["requests"] == len(work)
    assert told["all"]["answered"] + sum(told["all"]["errors"].values()) == len(work)
    expected = {name: {} if error is None else {error: 4} for name, (_, error) in ANSWERS.items()}
    assert {name: group["errors"] for name, group in told["each"].items()} == expected
    assert told["all"]["output_tokens"] == told["each"]["good"]["output_tokens"] == 4
    assert {len(one.pieces) for one in measured if one.label == "good"} == {1}
    assert "cut: 0 of 4 answered, 0.00 requests/s, 0.0 tokens/s; errors: 4 × stream" in table(told)


async def test_nobody_listens() -> None:
    async with canned() as url:
        pass
    work = jobs(2, [Target("good", 1, {"model": "good"})], synthetic_prompts(2, (2, 2), seed=0), (4, 4), {}, 0)
    measured, _ = await run(Load(url, {}, 1, None, 60.0, 0), work, warmup=0)
    assert [one.error for one in measured] == ["connection"] * 2
