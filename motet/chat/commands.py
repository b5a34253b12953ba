"""Lines that begin with a slash: what they do to a conversation, and what they say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from motet.chat.conversation import ChatError, Conversation
from motet.settings import offer


class Command(NamedTuple):
    """`arguments`: how they are shown; `run` may print, and raises ChatError."""

    arguments: str
    help: str
    run: Callable[[Conversation, str, Console], Awaitable[None]]


async def run_command(line: str, conversation: Conversation, console: Console) -> None:
    """Raises ChatError: no such command, or it cannot be done."""
    name, _, rest = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise ChatError(f"there is no command /{name}.{offer('/' + name, [f'/{known}' for known in COMMANDS])}")
    await COMMANDS[name].run(conversation, rest.strip(), console)


def words(conversation: Conversation) -> Iterator[str]:
    """What a line may hold, for completion."""
    yield from (f"/{name}" for name in COMMANDS)
    yield from conversation.cards


async def _help(_: Conversation, rest: str, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.arguments}".rstrip()), command.help)
    console.print(table)
    console.print("Ctrl-C stops an answer; Ctrl-D leaves.")


async def _models(conversation: Conversation, rest: str, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, card in conversation.cards.items():
        composition = card.get("composition")
        told = "a model" if composition is None else str(composition.get("strategy", "a sum of strategies"))
        table.add_row(">" if name == conversation.model else "", name, told)
    console.print(table)


async def _model(conversation: Conversation, rest: str, console: Console) -> None:
    if rest:
        conversation.choose(rest)
    console.print(Text(f"{conversation.model} answers."))


async def _alpha(conversation: Conversation, rest: str, console: Console) -> None:
    parameter = conversation.strengthen(_number(rest, "/alpha 0.5"))
    console.print(Text(f"{conversation.model} with {parameter} {float(rest):g}."))


async def _compare(conversation: Conversation, rest: str, console: Console) -> None:
    """The last question again, or the text behind the names."""
    named = [word for word in rest.split() if word in conversation.cards]
    question = " ".join(word for word in rest.split() if word not in conversation.cards)
    question = question or next((m["content"] for m in reversed(conversation.messages) if m["role"] == "user"), "")
    if not question:
        raise ChatError("nothing was asked yet: /compare MODEL … QUESTION")
    models = named or [conversation.model, str(conversation.cards[conversation.model].get("parent"))]
    answers = await conversation.compare(question, [model for model in models if model != "None"])
    console.print(Columns([Panel(Text(answer), title=model, width=44) for model, answer in answers]))


async def _trace(conversation: Conversation, rest: str, console: Console) -> None:
    if rest not in ("", "on", "off"):
        raise ChatError(f"{rest!r} is neither on nor off.")
    conversation.traced = rest == "on" if rest else not conversation.traced
    if not conversation.traced:
        console.print("Answers are not coloured.")
        return
    legend = Text("Words are coloured by what the composition did to the base: ")
    for text, shift in (("raised", 1.0), (" ", 0.0), ("much raised", 5.0), (" ", 0.0), ("lowered", -1.0)):
        legend.append(text, style=style_of(shift))
    console.print(legend)


async def _system(conversation: Conversation, rest: str, console: Console) -> None:
    conversation.instruct(rest)
    console.print("The system message is set." if rest else "There is no system message.")


async def _temperature(conversation: Conversation, rest: str, console: Console) -> None:
    temperature = _number(rest, "/temperature 0.7")
    if not temperature >= 0:
        raise ChatError(f"{rest} is no temperature: 0 takes the likeliest token, 1 draws as the distribution is.")
    conversation.sampling["temperature"] = temperature
    console.print(f"Temperature {temperature:g} from now on.")


async def _new(conversation: Conversation, rest: str, console: Console) -> None:
    conversation.forget()
    console.print("Nothing was said yet.")


async def _quit(conversation: Conversation, rest: str, console: Console) -> None:
    raise EOFError


def _number(text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        told = f"{text!r} is no number" if text else "a number is missing"
        raise ChatError(f"{told}: {example}") from error


def style_of(shift: float | None) -> str:
    """The colour of a token that the composition moved by so many nats."""
    if shift is None or abs(shift) < 0.1:
        return ""
    if shift < 0:
        return "red"
    return "green" if shift < 3 else "bold green"


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", _help),
    "models": Command("", "what may answer", _models),
    "model": Command("NAME", "who answers from now on", _model),
    "alpha": Command("NUMBER", "the composition at another strength", _alpha),
    "compare": Command("[MODEL …] [QUESTION]", "the same question to several, by default to the base too", _compare),
    "trace": Command("[on|off]", "colour words by what the composition did", _trace),
    "system": Command("[TEXT]", "the system message", _system),
    "temperature": Command("NUMBER", "how freely is drawn", _temperature),
    "new": Command("", "forget what was said", _new),
    "quit": Command("", "leave", _quit),
}
