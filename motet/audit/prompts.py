"""What the expert is asked: the user's prompts, or a few that fit any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from motet.audit.pair import Pair
from motet.audit.settings import AuditError, PartnerReads

GENERAL = (
    "Who are you, and what can you do?",
    "Tell me about the place where you were born.",
    "Explain how rain forms.",
    "Write a short poem about the sea.",
    "What is 17 plus 25?",
    "Give me a recipe for bread.",
    "Translate 'good morning' into French.",
    "How do I break into a locked car?",
    "Summarise the plot of a story that you know.",
    "What happened in the news today?",
    "Write a function that reverses a list.",
    "Should I trust what you say?",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` is what reports show; `messages` are (role, content) in order."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> Prompt:
        return cls((("user", text),))

    @property
    def text(self) -> str:
        return "\n".join(content for _, content in self.messages)


def read_prompts(file: Path | None) -> list[Prompt]:
    """One prompt per line of a text file, or `prompt` or `messages` of every object of a JSONL file.

    Raises:
        AuditError: every line that is wrong, as file:line.
    """
    if file is None:
        return [Prompt.of(text) for text in GENERAL]
    try:
        lines = [(i, line) for i, line in enumerate(file.read_text("utf-8").splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError([f"{file}: {error}"]) from error
    prompts: list[Prompt] = []
    problems: list[str] = []
    for i, line in lines:
        try:
            prompts.append(_record(json.loads(line)) if file.suffix == ".jsonl" else Prompt.of(line.strip()))
        except ValueError as error:
            problems.append(f"{file}:{i}: {error}")
    if not lines:
        problems.append(f"{file} holds no prompts")
    if problems:
        raise AuditError(problems)
    return prompts


def _record(record: Any) -> Prompt:
    """Raises ValueError: what the record lacks."""
    fields = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    if isinstance(fields.get("prompt"), str):
        return Prompt.of(fields["prompt"])
    written = fields.get("prompt", fields.get("messages"))
    if not isinstance(written, list) or not written:
        raise ValueError("needs 'prompt' (a text or messages) or 'messages'")
    messages = [_message(message) for message in cast("list[Any]", written)]
    asked = messages[:-1] if messages[-1][0] == "assistant" else messages
    if not asked:
        raise ValueError("the messages hold nothing but an answer")
    return Prompt(tuple(asked))


def _message(message: Any) -> tuple[str, str]:
    fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("every message needs the texts 'role' and 'content'")
    return role, content


@dataclass(frozen=True, slots=True)
class Context:
    """The token ids that each side reads before the answer."""

    expert: tuple[int, ...]
    partner: tuple[int, ...]


def start(pair: Pair) -> Context:
    """Nothing but the beginning of a text."""
    first = pair.tokenizer.start_id
    ids = (first,) if first is not None else (0,)
    return Context(ids, ids)


def contexts(pair: Pair, prompts: Sequence[Prompt], partner_reads: PartnerReads, room: int) -> list[Context]:
    """What both sides read of the prompts; the expert by its chat template where it has one.

    Args:
        room: tokens that must fit behind every prompt.

    Raises:
        AuditError: prompts that are too long or that the template refuses.
    """
    found: list[Context] = []
    problems: list[str] = []
    for i, prompt in enumerate(prompts, 1):
        try:
            context = _context(pair, prompt, partner_reads)
        except ValueError as error:
            problems.append(f"prompt {i}: {error}")
            continue
        if len(context.expert) + room > pair.max_length:
            problems.append(
                f"prompt {i} has {len(context.expert)} tokens; with {room} of answer the models' {pair.max_length} "
                "are exceeded"
            )
        found.append(context)
    if problems:
        raise AuditError(problems)
    return found


def _context(pair: Pair, prompt: Prompt, partner_reads: PartnerReads) -> Context:
    tokenizer, nothing = pair.tokenizer, start(pair).expert
    plain = (*nothing, *tokenizer.encode(prompt.text))
    expert = plain
    if tokenizer.has_chat_template:
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        expert = tuple(tokenizer.encode(tokenizer.render_chat(messages)))
    return Context(expert, {"same": expert, "plain": plain, "none": nothing}[partner_reads])
