"""The terminal around a conversation."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import cast

from openai import APIError, AsyncOpenAI
from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import FuzzyWordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from rich.console import Console
from rich.text import Text

from motet.chat.commands import run_command, style_of, words
from motet.chat.conversation import ChatError, Conversation


async def chat(sdk: AsyncOpenAI, model: str | None, history: Path | None, console: Console) -> None:
    """Until the user leaves.

    Args:
        history: where lines are kept; None: nowhere.

    Raises:
        ChatError: there is no such model.
        openai.OpenAIError: the server cannot be asked.
    """
    conversation = await Conversation.begin(sdk, model)
    console.print(Text(f"{conversation.model} answers. /help says what else there is."))
    with suppress(EOFError):
        async for line in _lines(conversation, history):
            await _said(line.strip(), conversation, console)


async def _said(line: str, conversation: Conversation, console: Console) -> None:
    """One line of the user: a command, or something to answer. What goes wrong is said."""
    try:
        if line.startswith("/"):
            await run_command(line, conversation, console)
        elif line:
            await _interruptible(_answer(line, conversation, console), console)
    except ChatError as error:
        console.print(Text(str(error), style="red"))
    except APIError as error:
        console.print(Text(f"the server says: {_message(error)}", style="red"))
        if getattr(error, "code", None) == "context_length_exceeded" and conversation.messages:
            console.print("/new forgets what was said before.")


def _message(error: APIError) -> str:
    """The server's own sentence, where it wrote one."""
    body = cast("dict[str, object]", error.body) if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)


async def _answer(question: str, conversation: Conversation, console: Console) -> None:
    length = 0
    try:
        async for piece in conversation.ask(question):
            console.print(Text(piece.text, style=style_of(piece.shift)), end="", soft_wrap=True)
            length += len(piece.text)
    finally:
        if length:
            console.print()


async def _interruptible(answer: Coroutine[None, None, None], console: Console) -> None:
    """Ctrl-C ends the answer, not the program."""
    task = asyncio.create_task(answer)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        console.print("(stopped)", style="dim")
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _lines(conversation: Conversation, history: Path | None) -> AsyncIterator[str]:
    """What is typed, with completion and history; or what comes through a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line
        return
    session: PromptSession[str] = PromptSession(
        history=_history(history),
        completer=FuzzyWordCompleter(list(words(conversation))),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
    )
    while True:
        with suppress(KeyboardInterrupt):  # an empty line, as in a shell
            yield await session.prompt_async("> ")


def _history(file: Path | None) -> History:
    """In the file; in memory where that cannot be written."""
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            return FileHistory(str(file))
    except OSError:
        pass
    return InMemoryHistory()
