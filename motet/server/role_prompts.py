"""What a role reads where it does not read the request's prompt as it is: a prompt of its own, or other names in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from motet.composers.plan import Prompt
from motet.server.http.errors import PROMPT_NOT_AS_TOKENS, PROMPT_TOO_LONG, invalid
from motet.server.query import RequestPrompt
from motet.server.shapes.requests import MAX_TOKENIZED

NO_TEXT = frozenset({"role", "type", "id", "tool_call_id", "name"})  # of a turn: what its template goes by


def as_role_reads(prompt: RequestPrompt, own: Prompt) -> RequestPrompt:
    """The role's own prompt where it has one, else the request's with other names.

    Raises:
        ApiError: 400, token ids in which names are to change, or names that make the prompt too long.
    """
    return own_prompt(own) if own.is_own else _with_swaps(prompt, own)


def own_prompt(own: Prompt) -> RequestPrompt:
    """A role's own prompt as a request would send it."""
    turns = [{"role": role, "content": content} for role, content in own.messages or ()]
    prompt = RequestPrompt(text=own.text, messages=None if own.messages is None else tuple(turns))
    return _with_swaps(prompt, own)


def _with_swaps(prompt: RequestPrompt, own: Prompt) -> RequestPrompt:
    """The prompt with the names changed that a stream reads otherwise."""
    if not own.swaps:
        return prompt
    if prompt.tokens is not None:
        said = "The composition changes names in the prompt: send text, not tokens."
        raise invalid(said, "prompt", public=PROMPT_NOT_AS_TOKENS)
    growth = 0

    def measured(text: str) -> str:
        nonlocal growth
        growth += own.growth(text)
        return text

    _with_texts((prompt.text, prompt.messages), measured)
    if growth > MAX_TOKENIZED:  # nothing is built that only a refusal can follow
        said = f"The names that the composition changes make the prompt longer by {growth:,} characters"
        message = f"{said}: at most {MAX_TOKENIZED:,}."
        raise invalid(message, prompt.param, "context_length_exceeded", public=PROMPT_TOO_LONG)
    messages = prompt.messages and tuple(_with_texts(turn, own.swapped) for turn in prompt.messages)
    return replace(prompt, text=None if prompt.text is None else own.swapped(prompt.text), messages=messages)


def _with_texts(value: Any, changed: Callable[[str], str]) -> Any:
    """A turn with everything changed that the model reads as text: content, thoughts, arguments of calls."""
    match value:
        case str():
            return changed(value)
        case Mapping():
            turn = cast("Mapping[str, Any]", value)
            return {key: part if key in NO_TEXT else _with_texts(part, changed) for key, part in turn.items()}
        case list() | tuple():
            return [_with_texts(part, changed) for part in cast("Sequence[Any]", value)]
        case _:
            return value


def is_said(prompt: RequestPrompt, own: Prompt) -> bool:
    """Whether a prompt is read as messages: it has some, or its text becomes one."""
    return prompt.messages is not None or (prompt.text is not None and own.template == "chat")
