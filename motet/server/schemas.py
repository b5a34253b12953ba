"""Request bodies. Types are strict: "5" is no number and true is no 1. Unknown fields are kept to be logged."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from motet.server.structured import StructuredFields

MAX_CHOICES = 128
MAX_STOPS = 16  # OpenAI and the chat endpoint: 4; evaluation harnesses send more to completions
MAX_TOP_LOGPROBS = 20
INT64 = 2**63 - 1

Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | list[TokenId]  # an empty one is the beginning of a text
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, regex_engine="rust-regex")


def _is_text(value: Any) -> bool:
    """Whether all strings inside can be encoded: JSON can escape half of a surrogate pair, which is no character."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value)
        return all(_is_text(key) and _is_text(item) for key, item in pairs.items())
    return not isinstance(value, list) or all(map(_is_text, cast("list[Any]", value)))


class WholeBody(Body):
    """The outermost object of a request."""

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if not _is_text(value):
            raise ValueError("a string holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
        return value


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class TraceOptions(Body):
    """`top`: alternatives per token, before and after composition."""

    model_config = ConfigDict(extra="forbid")

    top: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    def plain(self) -> tuple[str, str]:
        """(role, whole text); `developer` is the newer name of `system`."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content or ""
        return role, parts if isinstance(parts, str) else "".join(part.text for part in parts)


class Target(WholeBody):
    """What answers: a model or a named composition, or a composition written in the request."""

    model: str | None = None
    composition: dict[str, JsonValue] | None = Field(
        default=None, description="A composition object; see /v1/models for named ones."
    )
    guidance_scale: Finite | None = None
    negative_prompt: str | None = None


def _empty_to_none(value: Any) -> Any:
    return None if value == [] else value


class SamplingFields(Target, StructuredFields):
    """What chat completions, completions and comparisons share."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-INT64, le=INT64)] | None = None
    stop: Annotated[Stop | list[Stop] | None, BeforeValidator(_empty_to_none)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[Text] | None = None
    allowed_token_ids: TokenIds | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    trace: bool | TraceOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatFields(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


class ChatCompletionRequest(SamplingFields, ChatFields):
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionRequest(SamplingFields):
    prompt: Prompt | Annotated[list[str], Field(min_length=1)] | Annotated[list[list[TokenId]], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(WholeBody):
    """Text or messages; `model` may be missing where all models have one vocabulary."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(WholeBody):
    model: str | None = None
    tokens: list[TokenId]


class ScoreRequest(Target):
    """Log-probabilities of continuations of one prompt under a composition."""

    prompt: Prompt | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    continuations: Annotated[list[Text | TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    trace: bool | TraceOptions | None = None


class Candidate(Target):
    """One of the compared answers; a bare string in `candidates` is a model id."""

    label: str | None = None


class CompareRequest(SamplingFields):
    """One prompt under several compositions; `model` is the default of candidates that name none."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    candidates: Annotated[list[str | Candidate], Field(min_length=1, max_length=32)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
