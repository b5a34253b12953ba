"""Request fields that say what an answer must look like: OpenAI's, vLLM's, and vLLM's older ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Schema = dict[str, JsonValue]


class Strict(BaseModel):
    """Every key changes the answer: one that is not known is refused by its name."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True, use_attribute_docstrings=True
    )


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
Choices = Annotated[list[str], Field(min_length=1)]


class StructuredOutputs(Strict):
    """One of `json` (a schema, or its text), `json_object`, `regex`, `choice` and `grammar` (Lark or GBNF)."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    """A JSON schema, or its text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: Choices | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """A grammar in Lark's or GBNF's notation."""
    disable_any_whitespace: bool = False
    """JSON without free spaces and line breaks: small models may dwell on them."""
    whitespace_pattern: str | None = None
    """A regular expression of the spaces allowed in JSON."""

    def options(self) -> dict[str, Any]:
        """How JSON may be spaced, as llguidance names it."""
        pattern = {} if self.whitespace_pattern is None else {"whitespace_pattern": self.whitespace_pattern}
        return pattern | ({"whitespace_flexible": False} if self.disable_any_whitespace else {})


class StructuredFields(BaseModel):
    """What may ask for a structured answer; at most one of them. `guided_*` are vLLM's older names."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    response_format: ResponseFormat | None = None
    """OpenAI's way to ask for JSON."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's way to ask for JSON, a pattern, a choice or a grammar."""
    guided_json: Schema | str | None = None
    """Older name of `structured_outputs.json`."""
    guided_regex: str | None = None
    """Older name of `structured_outputs.regex`."""
    guided_choice: Choices | None = None
    """Older name of `structured_outputs.choice`."""
    guided_grammar: str | None = None
    """Older name of `structured_outputs.grammar`."""
