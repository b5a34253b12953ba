"""The columns that rows can have, and how each format becomes a record. Column names are those of TRL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from motet.settings import closest
from motet.training.data.errors import RowError, listing
from motet.training.data.files import Row
from motet.training.data.json_text import is_list
from motet.training.data.messages import Message, Messages, parse_messages, parse_sharegpt, parse_tools
from motet.training.data.records import Answer, Label, Part, Record, Text
from motet.training.data.spans import Span, parse_spans
from motet.training.objectives.objective import RecordKind

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}  # in CSV files, which hold text alone
PAIR = ("chosen", "rejected")
BLANKS = re.compile(r"\s+")
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """Columns, the sort of records that they make, and the parser of one row (raises RowError)."""

    columns: tuple[str, ...]
    kind: RecordKind
    parse: Callable[[Row], Record]
    optional: tuple[str, ...] = ()

    def describe(self, name: str) -> str:
        """`alpaca (instruction, output, optionally input)`."""
        optional = f", optionally {', '.join(self.optional)}" if self.optional else ""
        return f"{name} ({', '.join(self.columns)}{optional})"


def _text(values: Values, column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        or_messages = " or messages" if column == "prompt" else ""
        raise RowError(
            f"{column}: expected text{or_messages}, got {'nothing' if value is None else type(value).__name__}"
        )
    return value


def _filled(values: Values, column: str) -> str:
    text = _text(values, column)
    if not text.strip():
        raise RowError(f"{column}: the text is empty")
    return text


def _side(values: Values, column: str, prompt: str | Messages) -> Answer:
    """An answer behind its prompt; where one is text and the other messages, both become messages."""
    value = values.get(column)
    if isinstance(value, str):
        text = _filled(values, column)
        return Answer(prompt, text) if isinstance(prompt, str) else _turns(values, column, prompt, (_said(text),))
    return _turns(values, column, prompt, parse_messages(value, column))


def _said(text: str) -> Message:
    return Message("assistant", text)


def _turns(values: Values, column: str, prompt: str | Messages, messages: Messages) -> Answer:
    asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return _counting(Answer(asked, messages, tools=parse_tools(values.get("tools"))), column)


def _counting(part: Answer, column: str) -> Answer:
    """Raises RowError: nothing of the part would be learnt."""
    if part.turns:
        return part
    masked = any(message.role == "assistant" for message in part.messages)
    why = "every answer has weight 0" if masked else "no message of the assistant"
    raise RowError(f"{column}: {why}, so no token would count")


def _prompt(values: Values) -> str | Messages:
    value = values.get("prompt")
    return parse_messages(value, "prompt") if is_list(value) else _text(values, "prompt")


def _spans(values: Values, part: Part) -> tuple[Span, ...]:
    if values.get("spans") is None:
        return ()
    if isinstance(part, Text):
        return parse_spans(values["spans"], part.text)
    if not part.has_one_answer:
        raise RowError("spans: the record has several answers; allowed: one, as the last message")
    return parse_spans(values["spans"], part.plain_completion)


def _one(row: Row, part: Part, label: Label | None = None) -> Record:
    return Record(row.source, {"": part}, _spans(row.values, part), label)


def parse_text(row: Row) -> Record:
    return _one(row, Text(_filled(row.values, "text")))


def parse_conversation(row: Row) -> Record:
    return _conversation(row, parse_messages(row.values.get("messages"), "messages"), "messages")


def parse_sharegpt_row(row: Row) -> Record:
    return _conversation(row, parse_sharegpt(row.values.get("conversations"), "conversations"), "conversations")


def _conversation(row: Row, messages: Messages, column: str) -> Record:
    part = Answer((), messages, tools=parse_tools(row.values.get("tools")))
    return _one(row, _counting(part, column))


def parse_completion(row: Row) -> Record:
    return _one(row, _side(row.values, "completion", _prompt(row.values)))


def parse_question(row: Row) -> Record:
    """TOFU's and GSM8K's columns."""
    return _one(row, Answer(_filled(row.values, "question"), _filled(row.values, "answer")))


def parse_alpaca(row: Row) -> Record:
    """The prompt is the instruction and, where there is one, the input behind an empty line."""
    context = row.values.get("input")
    if context is not None and not isinstance(context, str):
        raise RowError(f"input: expected text, got {type(context).__name__}")
    instruction = _filled(row.values, "instruction")
    prompt = f"{instruction}\n\n{context}" if context and context.strip() else instruction
    return _one(row, Answer(prompt, _filled(row.values, "output")))


def parse_preference(row: Row) -> Record:
    if row.values.get("spans") is not None:
        raise RowError("spans: not supported in preference rows")
    if row.values.get("chosen") == row.values.get("rejected"):
        raise RowError("chosen and rejected are the same")
    return Record(row.source, dict(zip(PAIR, _pair(row.values), strict=True)))


def _pair(values: Values) -> tuple[Answer, Answer]:
    if all(is_list(values.get(side)) for side in PAIR):
        return _pair_of_messages(values)
    if values.get("prompt") is None:
        return _pair_of_texts(values)
    prompt = _prompt(values)
    return _side(values, "chosen", prompt), _side(values, "rejected", prompt)


def _pair_of_messages(values: Values) -> tuple[Answer, Answer]:
    """The prompt is its column; without one, or where both sides repeat it, their common beginning."""
    sides = [parse_messages(values[side], side) for side in PAIR]
    common = tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False)))
    given = None if values.get("prompt") is None else _prompt(values)
    said = [(message.role, message.content) for message in common]
    if isinstance(given, str) and common and ("user", given) not in said:
        raise RowError("chosen and rejected begin with messages that are not the prompt")
    if given is None or (said and (isinstance(given, str) or common[: len(given)] == given)):
        if not common:
            raise RowError("chosen and rejected have no common beginning that could be the prompt")
        given, sides = common, [messages[len(common) :] for messages in sides]
    if not all(sides):
        raise RowError("one of chosen and rejected is the other's beginning: no answer is left behind it")
    chosen, rejected = (_turns(values, side, given, messages) for side, messages in zip(PAIR, sides, strict=True))
    return chosen, rejected


def _pair_of_texts(values: Values) -> tuple[Answer, Answer]:
    """The common beginning is the prompt, up to the blank before the first word that differs: so words stay whole, and
    what both answers share weighs the same on both sides."""
    chosen, rejected = (_filled(values, side) for side in PAIR)
    common = len(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071, characters are meant
    shortest = min(len(chosen.rstrip()), len(rejected.rstrip()))
    blanks = [match.start() for match in BLANKS.finditer(chosen, 0, common) if 0 < match.start() < shortest]
    start = blanks[-1] if blanks else min(common, shortest - 1)
    if start < 1 or not chosen[:start].strip():
        raise RowError("chosen and rejected have no common beginning that could be the prompt")
    return Answer(chosen[:start], chosen[start:], is_cut=True), Answer(chosen[:start], rejected[start:], is_cut=True)


def parse_counterfactual(row: Row) -> Record:
    """One completion after two prompts; texts, because a prompt may end in the middle of an answer."""
    completion = _filled(row.values, "completion")
    sides: dict[str, Part] = {
        "": Answer(_filled(row.values, "prompt"), completion),
        "counterfactual": Answer(_filled(row.values, "counterfactual_prompt"), completion),
    }
    return Record(row.source, sides, _spans(row.values, sides[""]))


def parse_labelled(row: Row) -> Record:
    label = row.values.get("label")
    if isinstance(label, str):
        label = BOOLEANS.get(label.lower())
    if not isinstance(label, bool):
        raise RowError(f"label: expected true or false, got {row.values.get('label')!r}")
    return _one(row, _side(row.values, "completion", _prompt(row.values)), label)


def parse_class(row: Row) -> Record:
    label = row.values.get("label")
    if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
        raise RowError(f"label: expected a class's name or number, got {label!r}")
    return _one(row, Text(_filled(row.values, "text")), label)


FORMATS: dict[str, Format] = {
    "text": Format(("text",), "documents", parse_text, ("spans",)),
    "messages": Format(("messages",), "documents", parse_conversation, ("tools", "spans")),
    "prompt_completion": Format(("prompt", "completion"), "documents", parse_completion, ("tools", "spans")),
    "question_answer": Format(("question", "answer"), "documents", parse_question, ("spans",)),
    "alpaca": Format(("instruction", "output"), "documents", parse_alpaca, ("input", "spans")),
    "sharegpt": Format(("conversations",), "documents", parse_sharegpt_row, ("tools", "spans")),
    "preference": Format(("chosen", "rejected"), "pairs", parse_preference, ("prompt", "tools")),
    "counterfactual": Format(
        ("prompt", "counterfactual_prompt", "completion"), "counterfactuals", parse_counterfactual, ("spans",)
    ),
    "labelled": Format(("prompt", "completion", "label"), "labelled", parse_labelled, ("tools", "spans")),
    "classes": Format(("text", "label"), "classes", parse_class, ("spans",)),
}


def formats_of(kind: RecordKind) -> dict[str, Format]:
    """The formats of such records; those of clusters are prompts with answers, which texts do not have."""
    if kind == "clusters":
        return {name: form for name, form in FORMATS.items() if form.kind == "documents" and name != "text"}
    return {name: form for name, form in FORMATS.items() if form.kind == kind}


def recognise(columns: Collection[str], kind: RecordKind) -> str:
    """The one format of records of `kind` whose columns are all there.

    Raises:
        RowError: none or several fit; lists the columns found and the formats, the nearest first named.
    """
    allowed = formats_of(kind)
    fitting = [name for name, form in allowed.items() if set(form.columns) <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"columns {', '.join(sorted(columns)) or '(none)'}"
    formats = "; ".join(form.describe(name) for name, form in allowed.items())
    if fitting:
        raise RowError(f"{found} fit several formats: {', '.join(fitting)}; name one as `format`. Formats: {formats}")
    raise RowError(f"{found} fit no format of {kind}; nearest: {_nearest(columns, allowed)}. Formats: {formats}")


def _nearest(columns: Collection[str], formats: Mapping[str, Format]) -> str:
    """The formats that lack the fewest of their columns, each with the name that may have been meant for it."""
    lacking = {name: [c for c in form.columns if c not in columns] for name, form in formats.items()}
    share = {name: len(lacking[name]) / len(form.columns) for name, form in formats.items()}
    least = min(share.values())
    if least < 1:
        return "; ".join(f"{name} lacks {listing(lacking[name])}" for name in formats if share[name] == least)
    known = [column for form in formats.values() for column in form.columns]
    meant = {column: near for column in sorted(columns) if (near := closest(column, known))}
    return ", ".join(f"{column} is nearly {name}" for column, name in meant.items()) or "none, no column is known"
