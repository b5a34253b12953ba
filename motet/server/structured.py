"""Structured outputs: the request fields that say what an answer must look like (OpenAI's, vLLM's, and vLLM's older
ones), and the one grammar that they come to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field

from motet.composers.plan import Plan
from motet.engines.base import Grammar, ends_of
from motet.engines.grammar_limits import MAX_ALTERNATIVES, MAX_CHARACTERS, GrammarError
from motet.engines.grammar_process import GrammarUnavailable
from motet.engines.guidance import is_lark
from motet.operator.loaded import LoadedModel
from motet.operator.registry import Registry
from motet.server.http.errors import ApiError, busy, invalid
from motet.server.integers import bounded
from motet.server.shapes.closed import Closed

OWN = "structured_outputs"
TOOLS = "tools"
INVALID_GRAMMAR = "invalid_grammar"
PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # in Lark that the client has not written
SPACING = "x-guidance"  # llguidance reads its options inside of the schema
# On one line, as `json.dumps` writes it: where spaces may follow, llguidance sets no limit to their number, and
# small models go on with them to the end.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
TIGHT = {"item_separator": ",", "key_separator": ":"}
LARK = re.compile(r'"(?:\\.|[^"\\\n])*"|(?://|#)[^\n]*|/(?:\\.|[^/\\])+/', re.DOTALL)  # texts, comments, patterns
ESCAPE = re.compile(r"\\.", re.DOTALL)
DIGITS = {r"\d": "[0-9]", r"\D": "[^0-9]"}  # as in JSON schemas: a digit is one of ten, whatever other scripts have

Schema = dict[str, Any]


class Strict(Closed):
    """Every key changes the answer: one that is not known is refused by its name."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, serialize_by_alias=True, use_attribute_docstrings=True)


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    """`strict` or not, the schema is kept to; `name` and `description` are the client's own."""

    name: str
    """The client's own name of the schema."""
    schema_: Annotated[Schema, Field(alias="schema")]
    """A JSON schema that the answer keeps to."""
    description: str | None = None
    """The client's own note."""
    strict: bool | None = None
    """Kept to either way."""


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema
    """The schema, with its name."""


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_ALTERNATIVES, fail_fast=True)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class StructuredOutputs(Strict):
    """One of `json` (a schema, or its text), `json_object`, `regex`, `choice` and `grammar` (Lark or GBNF)."""

    json_: Annotated[Schema | Text | None, Field(alias="json")] = None
    """A JSON schema, or its text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: Text | None = None
    """A regular expression that the whole answer matches."""
    choice: Choices | None = None
    """The answer is one of these texts."""
    grammar: Text | None = None
    """A grammar in Lark's or GBNF's notation."""
    disable_any_whitespace: bool = False
    """JSON without spaces; by default one stands behind each colon and comma."""
    whitespace_pattern: Text | None = None
    """A regular expression of the spaces that may stand, any number of times, wherever JSON has them."""

    def options(self) -> dict[str, Any]:
        """How JSON may be spaced, as llguidance names it."""
        if self.whitespace_pattern is not None:
            return {"whitespace_pattern": self.whitespace_pattern, **TIGHT}
        return {"whitespace_flexible": False, **TIGHT} if self.disable_any_whitespace else {}


class StructuredFields(BaseModel):
    """What may ask for a structured answer; at most one of them. `guided_*` are vLLM's older names."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    response_format: ResponseFormat | None = None
    """OpenAI's way to ask for JSON."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's way to ask for JSON, a pattern, a choice or a grammar."""
    guided_json: Schema | Text | None = None
    """Older name of `structured_outputs.json`."""
    guided_regex: Text | None = None
    """Older name of `structured_outputs.regex`."""
    guided_choice: Choices | None = None
    """Older name of `structured_outputs.choice`."""
    guided_grammar: Text | None = None
    """Older name of `structured_outputs.grammar`."""


async def compiled_grammar(
    body: StructuredFields, plan: Plan, registry: Registry, calls: Callable[[str | None], str] | None = None
) -> Grammar | None:
    """The grammar that a request asks for, in the tokens of the plan's base. `calls` makes of it, or of None, that of
    an answer which may call functions.

    Raises:
        ApiError: 400, several are asked for, or one that cannot be: named by its field, with the reason; 503, it could
            not be compiled now.
    """
    asked = _asked(body)
    if len(asked) > 1:
        raise invalid(f"{' and '.join(map(repr, asked))} exclude each other: one at most.", next(iter(asked)))
    if not asked and body.structured_outputs is not None and body.structured_outputs.options():
        raise invalid("structured_outputs: one of json, json_object, regex, choice, grammar is missing.", OWN)
    if not asked and calls is None:
        return None
    field, written = next(iter(asked.items()), (TOOLS, None))
    if calls is not None and field.endswith("grammar"):
        raise invalid(f"{field}: a grammar of one's own excludes calls of tools; set tool_choice to none.", field)
    member = registry.base_of(plan)
    own = None if written is None else await _text(field, written)
    grammar = None if own is None else await _compiled(member, field, own)
    if calls is not None:
        grammar = await _compiled(member, TOOLS, await _text(TOOLS, lambda: calls(own)))
    if not ends_of(plan, registry.infos):
        model = plan.streams[0].model
        said = "has no end-of-sequence token to end with."
        raise invalid(f"{field}: model {model!r} {said}", field, public=f"{field}: the model {said}")
    return grammar


async def _text(field: str, write: Callable[[], str]) -> str:
    try:
        return await to_thread.run_sync(write)
    except ValueError as error:
        raise _refused(field, error) from error


async def _compiled(member: LoadedModel, field: str, text: str) -> Grammar:
    try:
        return await member.grammars.compiled(text)
    except GrammarError as error:
        raise _refused(field, error) from error
    except GrammarUnavailable as error:
        raise busy(503, f"{field}: {error}", "grammars_unavailable") from error


def _refused(field: str, error: ValueError) -> ApiError:
    reason = str(error) if field.endswith("grammar") else PLACE.sub("", str(error))
    return invalid(f"{field}: {reason}", field, INVALID_GRAMMAR)


def asks_for_format(body: StructuredFields) -> bool:
    """Whether the text of the answer is held to anything."""
    return bool(_asked(body))


def _asked(body: StructuredFields) -> dict[str, Callable[[], str]]:
    """Field → what writes its grammar, of the fields that ask for one."""
    own = body.structured_outputs or StructuredOutputs()
    kinds: dict[str, tuple[Callable[[Any, Mapping[str, Any]], str], Any]] = {
        "structured_outputs.json": (_from_schema, own.json_),
        "structured_outputs.json_object": (_from_schema, {"type": "object"} if own.json_object else None),
        "structured_outputs.regex": (_from_regex, own.regex),
        "structured_outputs.choice": (_from_choice, own.choice),
        "structured_outputs.grammar": (_from_grammar, own.grammar),
        "guided_json": (_from_schema, body.guided_json),
        "guided_regex": (_from_regex, body.guided_regex),
        "guided_choice": (_from_choice, body.guided_choice),
        "guided_grammar": (_from_grammar, body.guided_grammar),
    }
    match body.response_format:
        case JsonObjectFormat():
            kinds["response_format"] = (_from_schema, {"type": "object"})
        case JsonSchemaFormat(json_schema=named):
            kinds["response_format.json_schema.schema"] = (_from_schema, named.schema_)
        case _:
            pass
    return {
        field: lambda write=write, value=value: write(value, own.options())
        for field, (write, value) in kinds.items()
        if value is not None
    }


def _from_schema(schema: Schema | str, options: Mapping[str, Any]) -> str:
    return f"start: {json_rule(_parsed(schema) if isinstance(schema, str) else schema, options)}"


def json_rule(schema: Schema, options: Mapping[str, Any] | None = None) -> str:
    """What a rule of a Lark grammar says of JSON under a schema, spaced as the options have it; integers end.

    Raises:
        ValueError: the schema is nested too deeply, or its own options are no object.
    """
    own = schema.get(SPACING, {})
    if not isinstance(own, dict):
        raise ValueError(f"{SPACING} is an object")
    try:
        return f"%json {json.dumps({**bounded(schema), SPACING: {**(own or ONE_LINE), **(options or {})}})}"
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply") from error


def _parsed(text: str) -> Schema:
    """Raises ValueError: the text is no JSON object."""
    try:
        schema: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"the schema is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    return cast(Schema, schema)


def _from_regex(regex: str, _: Mapping[str, Any]) -> str:
    from llguidance import regex_to_lark

    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise ValueError("the regex ends inside of an escape")
    return f"start: /{regex_to_lark(regex, use_ascii='d')}/"


def _from_choice(choices: Sequence[str], _: Mapping[str, Any]) -> str:
    """One terminal: as a rule of so many alternatives it would soon be too large. JSON's strings are Lark's."""
    written = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))
    return f"start: CHOICE\nCHOICE: {written}"


def _from_grammar(grammar: str, _: Mapping[str, Any]) -> str:
    """Lark as llguidance knows it, or GBNF as llama.cpp does, which has no patterns."""
    return LARK.sub(_pattern_with_digits, grammar) if is_lark(grammar) else grammar


def _pattern_with_digits(part: re.Match[str]) -> str:
    is_pattern = part[0][0] == "/" != part[0][1]
    return ESCAPE.sub(lambda escape: DIGITS.get(escape[0], escape[0]), part[0]) if is_pattern else part[0]
