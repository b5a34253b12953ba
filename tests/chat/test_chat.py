"""`motet chat`: what lines do, over the application with a fake engine."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, DefaultAsyncHttpxClient
from rich.console import Console
from typer.testing import CliRunner

from motet.chat import terminal
from motet.chat.commands import COMMANDS, run_command, style_of, words
from motet.chat.conversation import ChatError, Conversation, Piece
from motet.cli import app
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import FakeEngine
from tests.server.conftest import make_service

REQUEST = httpx2.Request("POST", "http://motet/v1/chat/completions")


@pytest.fixture
def service() -> Service:
    service = make_service()
    script(service, "expert", "Hello you")
    script(service, "large", "large says this")
    return service


@pytest.fixture
async def sdk(service: Service) -> AsyncIterator[AsyncOpenAI]:
    client = DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(create_app(service)), trust_env=False)
    async with AsyncOpenAI(base_url="http://motet/v1", api_key="none", http_client=client) as sdk:
        yield sdk


def script(service: Service, model: str, text: str) -> None:
    assert isinstance(service.engine, FakeEngine)
    service.engine.scripts[model] = service.registry.members[model].tokenizer.encode(text)


async def said(conversation: Conversation, *lines: str) -> str:
    """What the commands print."""
    out = io.StringIO()
    for line in lines:
        await run_command(line, conversation, Console(file=out, width=200))
    return out.getvalue()


async def answer(conversation: Conversation, text: str) -> str:
    return "".join([piece.text async for piece in conversation.ask(text)])


async def test_what_was_said_is_sent_along(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk, "expert")
    assert await answer(conversation, "Hi") == "Hello you"
    await answer(conversation, "And?")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    await said(conversation, "/system Be short.", "/new")
    assert conversation.messages == [{"role": "system", "content": "Be short."}]
    await said(conversation, "/system")
    assert conversation.messages == []


async def test_it_begins_with_the_first_composition(sdk: AsyncOpenAI) -> None:
    assert (await Conversation.begin(sdk)).model == "large-proxy"
    with pytest.raises(ChatError, match="Did you mean 'expert'"):
        await Conversation.begin(sdk, "exprt")


async def test_alpha_is_the_strength_of_the_composition(sdk: AsyncOpenAI, service: Service) -> None:
    conversation = await Conversation.begin(sdk, "large-proxy")
    assert "alpha 0.5" in await said(conversation, "/alpha 0.5")
    await answer(conversation, "Hi")
    assert isinstance(service.engine, FakeEngine)
    plan = service.engine.requests[-1].plan
    assert [(stream.model, stream.weight) for stream in plan.streams] == [
        ("large", 1.0),
        ("expert", 0.5),
        ("small", -0.5),
    ]
    assert "large-proxy answers" in await said(conversation, "/model large-proxy")
    assert conversation.composition is None
    with pytest.raises(ChatError, match="one model"):
        await said(conversation, "/model large", "/alpha 1")
    with pytest.raises(ChatError, match="no number"):
        await said(conversation, "/model large-proxy", "/alpha much")


async def test_pieces_are_coloured_by_the_shift_of_the_base(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk, "large-proxy")
    await said(conversation, "/trace on")
    pieces = [piece async for piece in conversation.ask("Hi")]
    assert all(piece.shift is not None for piece in pieces)
    await said(conversation, "/trace")
    assert [piece.shift async for piece in conversation.ask("Hi")] == [None] * len(pieces)
    assert [style_of(shift) for shift in (None, 0.05, -2.0, 1.0, 7.0)] == ["", "", "red", "green", "bold green"]


async def test_a_question_to_several(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk, "large-proxy")
    with pytest.raises(ChatError, match="nothing was asked yet"):
        await said(conversation, "/compare")
    shown = await said(conversation, "/compare large expert What now?")
    assert "large says this" in shown
    assert "Hello you" in shown
    assert conversation.messages == [], "it does not count as said"


async def test_a_comparison_is_at_the_strength_that_was_chosen(sdk: AsyncOpenAI, service: Service) -> None:
    conversation = await Conversation.begin(sdk, "large-proxy")
    await said(conversation, "/alpha 0.5")
    assert isinstance(service.engine, FakeEngine)
    shown = await said(conversation, "/compare What now?")
    assert "large-proxy, alpha 0.5" in shown
    weights = {tuple(stream.weight for stream in request.plan.streams) for request in service.engine.requests}
    assert weights == {(1.0, 0.5, -0.5), (1.0,)}


async def test_temperatures_are_confirmed_or_refused_at_once(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk, "expert")
    assert await said(conversation, "/temperature 0.70") == "Temperature 0.7 from now on.\n"
    for wrong in ("-1", "nan", ""):
        with pytest.raises(ChatError, match=r"no temperature|a number is missing"):
            await said(conversation, f"/temperature {wrong}")
    assert conversation.sampling == {"temperature": 0.7}


async def test_commands_are_found_and_misspelt_ones_told(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk)
    listed = await said(conversation, "/help", "/models")
    assert all(f"/{name}" in listed for name in COMMANDS)
    assert {"/alpha", "large-proxy", "expert"} <= set(words(conversation))
    with pytest.raises(ChatError, match="Did you mean '/model'"):
        await said(conversation, "/modle")
    with pytest.raises(EOFError):
        await said(conversation, "/quit")


async def test_what_the_server_refuses_does_not_count_as_said(sdk: AsyncOpenAI) -> None:
    conversation = await Conversation.begin(sdk, "expert")
    conversation.sampling["temperature"] = -1.0
    with pytest.raises(BadRequestError):
        await answer(conversation, "Hi")
    assert conversation.messages == []


async def test_a_piped_conversation(sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Hi\n/temperature 9\nHi\n/nonsense\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    out = io.StringIO()
    await terminal.chat(sdk, "expert", None, Console(file=out, width=200))
    text = out.getvalue()
    assert "Hello you\n" in text
    assert "the server says: " in text
    assert "temperature" in text
    assert "there is no command /nonsense" in text
    assert "never" not in text


async def test_where_too_much_was_said_it_says_how_to_forget(sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: Conversation, text: str) -> AsyncIterator[Any]:
        if self.messages:
            body = {"message": "too long", "code": "context_length_exceeded"}
            raise BadRequestError("400", response=httpx2.Response(400, request=REQUEST), body=body)
        self.messages.append({"role": "user", "content": text})
        yield Piece("so")

    monkeypatch.setattr(Conversation, "ask", full)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nAnd\n"))
    out = io.StringIO()
    await terminal.chat(sdk, "expert", None, Console(file=out, width=200))
    assert "too long\n/new forgets what was said before.\n" in out.getvalue()


async def test_ctrl_c_stops_the_answer_alone(sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(self: Conversation, text: str) -> AsyncIterator[Any]:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
        yield None

    monkeypatch.setattr(Conversation, "ask", slow)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/help\n"))
    out = io.StringIO()
    await terminal.chat(sdk, "expert", None, Console(file=out, width=200))
    assert out.getvalue().index("(stopped)") < out.getvalue().index("this list")


def test_where_no_server_answers_it_says_so() -> None:
    ended = CliRunner().invoke(app, ["chat", "http://127.0.0.1:9"])
    assert ended.exit_code == 1
    assert "nothing answers at http://127.0.0.1:9" in ended.output
