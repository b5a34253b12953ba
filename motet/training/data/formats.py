"""The columns that rows can have, and how each format becomes a record. Column names are those of TRL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from motet.training.data.errors import RowError
from motet.training.data.files import Row, is_list
from motet.training.data.messages import Messages, parse_messages, parse_sharegpt
from motet.training.data.records import Answer, Label, Part, Record, Text
from motet.training.data.spans import Span, parse_spans
from motet.training.objectives.objective import RecordKind

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}  # in CSV files, which hold text alone
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
    """An answer in the form of its prompt: both texts, or both messages."""
    if isinstance(prompt, str):
        if not isinstance(values.get(column), str):
            raise RowError(f"{column}: expected text as in prompt, got {type(values.get(column)).__name__}")
        return Answer(prompt, _filled(values, column))
    if isinstance(values.get(column), str):
        raise RowError(f"{column}: expected messages as in prompt, got text")
    messages = parse_messages(values.get(column), column)
    if not any(message.role == "assistant" for message in messages):
        raise RowError(f"{column}: no message of the assistant, so no token would count")
    return Answer(prompt, messages)


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
    part = Answer((), messages)
    if not part.turns:
        raise RowError(f"{column}: no message of the assistant, so no token would count")
    return _one(row, part)


def parse_completion(row: Row) -> Record:
    return _one(row, _side(row.values, "completion", _prompt(row.values)))


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
    prompt = _prompt(row.values)
    sides: dict[str, Part] = {side: _side(row.values, side, prompt) for side in ("chosen", "rejected")}
    if sides["chosen"] == sides["rejected"]:
        raise RowError("chosen and rejected are the same")
    return Record(row.source, sides)


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
    "messages": Format(("messages",), "documents", parse_conversation, ("spans",)),
    "prompt_completion": Format(("prompt", "completion"), "documents", parse_completion, ("spans",)),
    "alpaca": Format(("instruction", "output"), "documents", parse_alpaca, ("input", "spans")),
    "sharegpt": Format(("conversations",), "documents", parse_sharegpt_row, ("spans",)),
    "preference": Format(("prompt", "chosen", "rejected"), "pairs", parse_preference),
    "counterfactual": Format(
        ("prompt", "counterfactual_prompt", "completion"), "counterfactuals", parse_counterfactual, ("spans",)
    ),
    "labelled": Format(("prompt", "completion", "label"), "labelled", parse_labelled, ("spans",)),
    "classes": Format(("text", "label"), "classes", parse_class, ("spans",)),
}


def recognise(columns: Collection[str], kind: RecordKind) -> str:
    """The one format of records of `kind` whose columns are all there.

    Raises:
        RowError: none or several fit; lists the columns found and the formats, the nearest first named.
    """
    allowed = {name: form for name, form in FORMATS.items() if form.kind == kind}
    fitting = [name for name, form in allowed.items() if set(form.columns) <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"columns {', '.join(sorted(columns)) or '(none)'}"
    formats = "; ".join(form.describe(name) for name, form in allowed.items())
    if fitting:
        raise RowError(f"{found} fit several formats: {', '.join(fitting)}; name one as `format`. Formats: {formats}")
    raise RowError(f"{found} fit no format of {kind}; nearest: {_nearest(columns, allowed)}. Formats: {formats}")


def _nearest(columns: Collection[str], formats: Mapping[str, Format]) -> str:
    """The format that lacks the smallest share of its columns."""

    def missing(name: str) -> tuple[float, int]:
        wanted = formats[name].columns
        lacking = [column for column in wanted if column not in columns]
        return len(lacking) / len(wanted), len(wanted)

    best = min(formats, key=missing)
    lacking = [column for column in formats[best].columns if column not in columns]
    return f"{best} lacks {', '.join(lacking)}"
