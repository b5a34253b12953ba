"""Grammars that crash, grow or take for ever: their process ends, and nothing else does.

Each of these passes the limits that can be counted beforehand. Compiled in this process, they end it or hold it up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from motet.engines import grammar_process, grammars
from motet.engines.grammar_limits import GrammarError
from motet.engines.grammar_process import CompileProcess, GrammarUnavailable, TokenizerText
from motet.engines.grammar_worker import COMPILE_SECONDS
from motet.engines.grammars import ROOM, CompileRoom, Grammars
from motet.engines.guidance import shown
from tests.fakes import byte_tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = byte_tokenizer()


def in_lark(schema: dict[str, Any]) -> str:
    return f"start: %json {json.dumps(schema)}"


ANCHORS = {"$defs": {f"d{i}": {"$anchor": f"a{i}", "$ref": f"#a{i + 1}"} for i in range(4000)}, "$ref": "#a0"}
DEEP = in_lark(ANCHORS)  # the stack
SLOW = in_lark({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]})  # minutes
LARGE = f"start: /{'a?' * 20000}/"  # gigabytes
GOOD = 'start: "yes" | "no"'


def tokenizer_text() -> TokenizerText:
    return TokenizerText(TOKENIZER.backend.to_str(), TOKENIZER.size, 0)


def grammars_of_bytes() -> Grammars:
    return Grammars(TOKENIZER, TOKENIZER.size)


@pytest.mark.parametrize(
    ("text", "said"),
    [(DEEP, "too deep into each other"), (SLOW, f"more than {COMPILE_SECONDS:g} s"), (LARGE, "512 MiB|more than 2 s")],
    ids=["deep", "slow", "large"],
)
def test_what_cannot_be_compiled_ends_its_process_alone(text: str, said: str) -> None:
    process = CompileProcess()
    started = time.monotonic()
    with pytest.raises(GrammarError, match=said):
        process.check(0, tokenizer_text, text)
    assert time.monotonic() - started < grammar_process.WALL_SECONDS
    assert process.check(0, tokenizer_text, GOOD).lark == GOOD
    process.stop()


def test_deep_definitions_end_a_process_that_has_no_guard() -> None:
    """Should this fail, the library bounds its recursion, and one reason for the process is gone."""
    script = """
import resource, sys
from llguidance import LLMatcher
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
LLMatcher.validate_grammar(sys.stdin.read())
"""
    done = subprocess.run([sys.executable, "-c", script], input=DEEP.encode(), cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGSEGV


def test_a_process_that_was_killed_starts_again() -> None:
    process = CompileProcess()
    process.check(0, tokenizer_text, GOOD)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    while True:  # whether the question is asked before or after its end is noticed
        try:
            process.check(0, tokenizer_text, GOOD)
            break
        except GrammarUnavailable:
            pass
    assert process.pid not in (None, first)
    process.stop()


def test_a_grammar_is_not_to_blame_for_a_process_that_was_killed() -> None:
    process = CompileProcess()
    process.start()
    killing = threading.Timer(0.3, lambda: os.kill(process.pid or 0, signal.SIGKILL))
    killing.start()
    with pytest.raises(GrammarUnavailable, match="from outside"):
        process.check(0, tokenizer_text, SLOW)
    killing.join()


def test_more_tokenizers_than_a_process_keeps() -> None:
    process = CompileProcess()
    for number in (*range(6), *range(6)):
        assert process.check(number, tokenizer_text, GOOD).num_bytes > 0
    process.stop()


def test_the_process_knows_no_secrets_and_ends_with_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", '["hunter2"]')
    process = CompileProcess()
    process.start()
    environment = Path(f"/proc/{process.pid}/environ")
    if environment.exists():
        assert b"hunter2" not in environment.read_bytes()
    started = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - started < 1


def test_where_no_process_starts_grammars_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(GrammarUnavailable, match="does not start"):
        CompileProcess().start()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GrammarUnavailable, match="does not start"):
        CompileProcess().check(0, tokenizer_text, GOOD)
    monkeypatch.setattr(grammars, "ROOM", CompileRoom())
    with pytest.raises(GrammarUnavailable):
        grammars_of_bytes().compile(GOOD)


async def test_an_event_loop_goes_on_while_grammars_compile() -> None:
    slow = [asyncio.create_task(grammars_of_bytes().compiled(SLOW)) for _ in range(3)]
    longest = 0.0
    while not all(task.done() for task in slow):
        started = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - started)
    assert longest < 1  # 10 ms and what the machine does beside it
    for result in await asyncio.gather(*slow, return_exceptions=True):
        assert isinstance(result, GrammarError)


async def test_grammars_of_clients_that_left_are_never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    gate = threading.Event()

    def check(number: int, tokenizer: Any, text: str) -> Any:
        begun.append(text)
        gate.wait(30)
        raise GrammarError("no")

    monkeypatch.setattr(ROOM.processes, "check", check)
    asked = [asyncio.create_task(grammars_of_bytes().compiled(f'start: "{i}"')) for i in range(20)]
    while len(begun) < grammar_process.PROCESSES:  # noqa: ASYNC110  (threads begin)
        await asyncio.sleep(0.01)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    gate.set()
    late = grammars_of_bytes()
    with pytest.raises(GrammarError):
        await late.compiled('start: "late"')
    assert len(begun) == grammar_process.PROCESSES + 1


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def waiting(*_: object) -> None:
        gate.wait(30)

    monkeypatch.setattr(ROOM.processes, "check", waiting)
    with pytest.raises(GrammarUnavailable, match=r"0\.1 s"):
        await grammars_of_bytes().compiled(GOOD, 0.1)
    gate.set()


async def test_remembered_grammars_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    known = grammars_of_bytes()
    first = await known.compiled(GOOD)

    def asked_again(*_: object) -> None:
        pytest.fail("asked again")

    monkeypatch.setattr(ROOM.processes, "check", asked_again)
    assert await known.compiled(GOOD) is first
    assert known.compile(GOOD) is first


async def test_models_with_the_same_tokenizer_share_what_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of a family usually have one tokenizer: a grammar costs its memory once, and its time."""
    width = TOKENIZER.size + 8  # of no other test, whose grammars would be in the same memory
    first = Grammars(TOKENIZER, width)
    compiled = await first.compiled(GOOD)
    wider = Grammars(TOKENIZER, width + 1)
    assert wider.compile(GOOD) is not compiled

    def asked_again(*_: object) -> None:
        pytest.fail("asked again")

    monkeypatch.setattr(ROOM.processes, "check", asked_again)
    again = Grammars(byte_tokenizer(), width)
    assert again.compile(GOOD) is compiled
    assert first.remembered_bytes == again.remembered_bytes == compiled.num_bytes


def many_items(most: int) -> str:
    properties = {f"p{i}": {"type": ["string", "integer"][i % 2]} for i in range(50)}
    return in_lark({"type": "array", "maxItems": most, "items": {"type": "object", "properties": properties}})


@pytest.mark.parametrize("is_checked", [False, True])
def test_grammars_are_remembered_up_to_their_bytes(monkeypatch: pytest.MonkeyPatch, is_checked: bool) -> None:
    known = Grammars(TOKENIZER, TOKENIZER.size, is_checked=is_checked)
    small = known.compile(GOOD)
    large = known.compile(many_items(9000))
    assert 0 < small.num_bytes < 1 << 20 < large.num_bytes < 64 << 20
    monkeypatch.setattr(grammars, "REMEMBERED_BYTES", large.num_bytes * 2)
    for most in range(9001, 9005):
        known.compile(many_items(most))
        assert known.remembered_bytes <= grammars.REMEMBERED_BYTES
    assert known.compile(GOOD) is not small
    monkeypatch.setattr(grammars, "REMEMBERED_BYTES", large.num_bytes // 2)
    kept = known.compile('start: "kept"')
    assert known.compile(many_items(9000)).num_bytes > grammars.REMEMBERED_BYTES
    assert known.compile('start: "kept"') is kept


def test_reasons_are_short_and_found_in_linear_time() -> None:
    started = time.process_time()
    assert shown("\n" * 500_000 + "1 | a") == ""
    assert shown("unknown name\n   3 | start: a\n   ^") == "unknown name"
    assert shown("panic: it broke\n<backtrace>\n 0: /home/somebody/src/lib.rs") == "panic: it broke"
    long = shown(f'invalid regex "{"a" * 100_000}": the reason')
    assert len(long) < 210
    assert long.endswith(": the reason")
    assert time.process_time() - started < 2
