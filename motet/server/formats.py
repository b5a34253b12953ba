"""Request fields that say what an answer must look like: OpenAI's, vLLM's, and vLLM's older ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Schema = dict[str, JsonValue]


class Strict(BaseModel):
    """Every key changes the answer: one that is not known is refused by its name."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    """`strict` or not, the schema is kept to; `name` and `description` are the client's own."""

    name: str
    schema_: Annotated[Schema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Choices = Annotated[list[str], Field(min_length=1)]


class StructuredOutputs(Strict):
    """One of `json` (a schema, or its text), `json_object`, `regex`, `choice` and `grammar` (Lark or GBNF)."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def options(self) -> dict[str, Any]:
        """How JSON may be spaced, as llguidance names it."""
        pattern = {} if self.whitespace_pattern is None else {"whitespace_pattern": self.whitespace_pattern}
        return pattern | ({"whitespace_flexible": False} if self.disable_any_whitespace else {})


class StructuredFields(BaseModel):
    """What may ask for a structured answer; at most one of them. `guided_*` are vLLM's older names."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
