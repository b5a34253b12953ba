"""What the expert is asked: the user's prompts, or a few that fit any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.audit.pair import Pair
from motet.audit.settings import AuditError, PartnerReads
from motet.training.data.errors import RowError
from motet.training.data.files import Bad, is_read, read_rows
from motet.training.data.messages import parse_messages

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
class AuditPrompt:
    """`text` is what reports show; `messages` are (role, content) in order."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> AuditPrompt:
        return cls((("user", text),))

    @property
    def text(self) -> str:
        return "\n".join(content for _, content in self.messages)


def read_prompts(file: Path | None) -> list[AuditPrompt]:
    """`prompt` or `messages` of every row of a data file (JSONL, JSON, CSV, Parquet); of any other file, every line.

    Raises:
        AuditError: every row that is wrong, as file:line.
    """
    if file is None:
        return [AuditPrompt.of(text) for text in GENERAL]
    found = list(_rows(file) if is_read(file) else _lines(file))
    problems = [problem for problem in found if isinstance(problem, str)]
    if not found:
        problems.append(f"{file} holds no prompts")
    if problems:
        raise AuditError(problems)
    return [prompt for prompt in found if isinstance(prompt, AuditPrompt)]


def _lines(file: Path) -> Iterator[AuditPrompt | str]:
    try:
        lines = file.read_text("utf-8-sig").split("\n")  # `splitlines` would also split at U+2028
    except (OSError, UnicodeDecodeError) as error:
        yield f"{file}: {error}"
        return
    yield from (AuditPrompt.of(line.strip()) for line in lines if line.strip())


def _rows(file: Path) -> Iterator[AuditPrompt | str]:
    """A prompt, or what is wrong with it, for every row."""
    for row in read_rows(file):
        if isinstance(row, Bad):
            yield str(row)
            continue
        try:
            yield _prompt(row.values)
        except RowError as error:
            yield f"{row.source}: {error}"


def _prompt(values: Mapping[str, Any]) -> AuditPrompt:
    """Raises RowError: what the row lacks."""
    if isinstance(values.get("prompt"), str):
        return AuditPrompt.of(values["prompt"])
    column = "messages" if values.get("prompt") is None else "prompt"
    if values.get(column) is None:
        raise RowError("needs 'prompt' (a text or messages) or 'messages'")
    messages = parse_messages(values[column], column)
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    if not asked:
        raise RowError("the messages hold nothing but an answer")
    return AuditPrompt(tuple((message.role, message.content) for message in asked))


@dataclass(frozen=True, slots=True)
class AuditContext:
    """The token ids that each side reads before the answer."""

    expert: tuple[int, ...]
    partner: tuple[int, ...]


def start(pair: Pair) -> AuditContext:
    """Nothing but the beginning of a text."""
    first = pair.tokenizer.start_id
    ids = (first,) if first is not None else (0,)
    return AuditContext(ids, ids)


def contexts(pair: Pair, prompts: Sequence[AuditPrompt], partner_reads: PartnerReads, room: int) -> list[AuditContext]:
    """What both sides read of the prompts; the expert by its chat template where it has one.

    Args:
        room: tokens that must fit behind every prompt.

    Raises:
        AuditError: prompts that are too long or that the template refuses.
    """
    found: list[AuditContext] = []
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


def _context(pair: Pair, prompt: AuditPrompt, partner_reads: PartnerReads) -> AuditContext:
    tokenizer, nothing = pair.tokenizer, start(pair).expert
    plain = (*nothing, *tokenizer.encode(prompt.text))
    expert = plain
    if tokenizer.has_chat_template:
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        expert = tuple(tokenizer.encode(tokenizer.render_chat(messages)))
    return AuditContext(expert, {"same": expert, "plain": plain, "none": nothing}[partner_reads])
