"""Request bodies. Types are strict: "5" is no number and true is no 1. Unknown fields are kept to be logged.

Every list and every number has a bound, which the OpenAPI description shows; a list is read up to its first problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from motet.composers.errors import at_most
from motet.engines.drafts import MOST_GUESSES, Acceptance
from motet.server.dialogue.reasoning import Effort
from motet.server.dialogue.tools import CallId, Choice, ToolCalls, Tools
from motet.server.shapes.closed import Closed
from motet.server.structured import StructuredFields

MAX_CHOICES = 128
MAX_CANDIDATES = 32
MAX_STOPS = 16  # OpenAI and the chat endpoint: 4; evaluation harnesses send more to completions
MAX_TOP_LOGPROBS = 20
MAX_NAMED_LOGPROBS = 128
MAX_MESSAGES = 4096  # a conversation of months; each is rendered by every member's template
MAX_PARTS = 1024  # of one message
MAX_PROMPTS = 4096  # beyond any `server.max_choices`, which decides
MAX_TOKEN_IDS = 1 << 20  # more than the longest context of a published model
MAX_TOKENIZED = 1 << 20  # characters of a text that is tokenized whole, however many tokens a model reads
MAX_STOP_IDS = 4096  # looked through at every token; models have a handful
MAX_ALLOWED = 1 << 17  # all ids of one script in the largest vocabularies
MAX_BIASES = 1 << 14
MAX_BAD_WORDS = 1024
MAX_WORD = 256  # characters of a stop text or a bad word
MAX_NAME = 512  # characters of a model's name, an organisation and a revision included
MAX_VARIABLES = 64  # of a chat template
NO_LIMIT = -1  # llama.cpp's and Open WebUI's way to set none
MAX_NUMBERS = 1 << 18  # ids and log-probs of a whole answer: up to 64 MB of JSON
INT32 = 2**31 - 1
INT64 = 2**63 - 1

Turn = dict[str, Any]  # of a conversation, as chat templates read it
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
TokenId = Annotated[int, Field(ge=0, le=INT32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
PromptIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Prompt = str | PromptIds  # an empty one is the beginning of a text
Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Text = Annotated[str, Field(min_length=1)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]*$")]  # vLLM's bounds


class Body(BaseModel):
    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        regex_engine="rust-regex",
        use_attribute_docstrings=True,
    )

    def extras(self, path: str = "") -> Iterator[Extra]:
        """Fields that are not known, of the body and of the objects in it; null asks for nothing."""
        for name, value in (self.model_extra or {}).items():
            if value is not None:
                yield Extra(path + name, name, value, type(self))
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Body):
                yield from value.extras(f"{path}{name}.")
            elif isinstance(value, list):
                for i, item in enumerate(cast("list[Any]", value)):
                    if isinstance(item, Body):
                        yield from item.extras(f"{path}{name}.{i}.")


class Extra(NamedTuple):
    """A field that `owner`, an object of the body, does not have."""

    path: str
    name: str
    value: Any
    owner: type[Body]


class StreamOptions(Body):
    include_usage: bool = False
    """One more chunk at the end, with no choices and the `usage` of the whole request."""
    continuous_usage_stats: bool = False
    """With `include_usage`: every chunk carries the usage so far."""


class TraceOptions(Body, Closed):
    """How much of each token a trace tells."""

    top: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    """Alternatives per token, before and after composition."""
    members: bool = False
    """Also each member's rank of the token, its push in nats, and its log-prob of every alternative."""


class SpeculationOptions(Body, Closed):
    """Which guesses are made; what is left out is what pays."""

    draft: Name | None = None
    """Who guesses: the role or the model of one of the composition's streams, or `ngram`, the text itself where it
    repeats."""
    tokens: Annotated[int, Field(ge=1, le=MOST_GUESSES)] = MOST_GUESSES
    """Most guesses that are verified at once."""
    acceptance: Acceptance = "coupled"
    """`coupled`: a guess is right where it is the very token that would have been drawn. `ratio`: where tokens are
    drawn without a seed, more guesses are right, and answers are as likely as before."""


class TextPart(Body):
    type: Literal["text"]
    text: str
    """The text; parts are joined without anything between them."""


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks; `developer` is the newer name of `system`, `tool` what a called function answered."""
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    """What is said, as a text or in parts."""
    name: Annotated[str, Field(max_length=MAX_WORD)] | None = None
    """Who of several speaks in this role, for templates that show it; others make it a 400."""
    tool_calls: ToolCalls | None = None
    """The functions that an assistant's turn called."""
    tool_call_id: CallId | None = None
    """Which call a tool's message answers."""
    reasoning_content: str | None = None
    """What an assistant thought before it answered."""

    @model_validator(mode="after")
    def _own_fields(self) -> Self:
        """Fields that belong to another role would be lost."""
        owners = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}
        wrong = next((name for name, role in owners.items() if getattr(self, name) and self.role != role), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} belongs to messages of role {owners[wrong]!r}, not {self.role!r}")
        return self

    @property
    def text(self) -> str:
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)

    def turn(self) -> Turn:
        """What templates read; `developer` is the newer name of `system`."""
        turn = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        own = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning_content}
        calls = {"tool_calls": [call.turn() for call in self.tool_calls]} if self.tool_calls else {}
        return turn | {name: value for name, value in own.items() if value} | calls


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Target(Body):
    """What answers: a model or a named composition, or a composition written in the request."""

    model: Name | None = None
    """A model or a named composition of `GET /v1/models`; may be missing where `composition` names its base."""
    composition: dict[str, Any] | None = None
    """What to compose, by `strategy`; without it `model` answers as it is, or as its name says."""
    guidance_scale: Finite | None = None
    """Classifier-free guidance: 1 changes nothing, more follows the prompt closer. Excludes `composition`."""
    negative_prompt: str | None = None
    """What the guidance leads away from; needs no `guidance_scale` beside it."""


def _empty_to_none(value: Any) -> Any:
    return None if value == [] else value


class SamplingFields(Target, StructuredFields):
    """What chat completions, completions and comparisons share."""

    max_tokens: Annotated[int, Field(ge=NO_LIMIT, le=INT32)] | None = None
    """Most tokens to generate, cut to what the context holds. −1: as many as that. Default: as many in chats, 16 in
    completions."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Divides the log-probs before a token is drawn; 0 takes the most likely token. Default 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw among the most likely tokens that have this probability together. Default 1: all."""
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    """Draw among this many most likely tokens. Default 0, as −1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw among tokens whose probability is at least this share of the most likely one's. Default 0: all."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Answers per prompt. Default 1."""
    seed: Annotated[int, Field(ge=-INT64, le=INT64)] | None = None
    """The same seed and request give the same answer; −1 is no seed."""
    stop: Annotated[
        Word | Annotated[list[Word], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
        BeforeValidator(_empty_to_none),
    ] = None
    """Texts that end the answer (at most 4 in chats, 16 in completions); not part of it."""
    stream: bool | None = None
    """Send the answer as server-sent events while it is written. One that is not holds at most 262,144 ids and
    log-probs, those of traces included; without a `max_tokens` it ends there."""
    stream_options: StreamOptions | None = None
    """What a stream reports beside the answer."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken off the scores of tokens that the answer holds already. Default 0."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken off a token's score once for each time that the answer holds it. Default 0."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Multiplies the log-probs of tokens that prompt or answer hold already. Default 1: off."""
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), at_most(MAX_BIASES)] | None = None
    """Added to the scores of tokens, by token id."""
    min_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    """The answer does not end before it has this many tokens. Default 0."""
    ignore_eos: bool | None = None
    """Go on after an end-of-sequence token, until `max_tokens`; a structured output ends where it is complete."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS, fail_fast=True)] | None = None
    """Token ids that end the answer, besides the model's own."""
    include_stop_str_in_output: bool | None = None
    """Keep the text of `stop` that ended the answer."""
    bad_words: Annotated[list[Word], Field(max_length=MAX_BAD_WORDS, fail_fast=True)] | None = None
    """Texts that the answer must not hold, as they are tokenized."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED, fail_fast=True)] | None = (
        None
    )
    """The only token ids that may be drawn."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Also report the log-probs of the prompt's tokens, each with this many alternatives, at most 262,144 in all. Not
    in streams."""
    logprob_token_ids: (
        Annotated[list[TokenId], Field(min_length=1, max_length=MAX_NAMED_LOGPROBS, fail_fast=True)] | None
    ) = None
    """With `logprobs`: report the log-probs of these token ids instead of the most likely ones."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text. Default true."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    """Keep only so many tokens of the prompt's end; −1: as many as the model reads. Of a text of at most 1,048,576
    characters."""
    return_token_ids: bool | None = None
    """Report the token ids of prompt and answer."""
    return_tokens_as_token_ids: bool | None = None
    """Write tokens in log-probs as `token_id:N`, where their text is not unique."""
    answer_prefix: Text | TokenIds | None = None
    """The answer begins with this text or these token ids, behind whatever each member reads; only what follows is
    drawn, up to `max_tokens`. Excludes structured outputs."""
    cache_salt: CacheSalt | None = None
    """Only requests with the same salt, and the same API key, share what was computed of their prompts."""
    trace: bool | TraceOptions | None = None
    """Report what each member did to each token, under `choices[].motet.trace`."""
    speculation: Literal["auto", "off"] | SpeculationOptions | None = None
    """Guess tokens ahead and verify them together: faster, the same answers. Default: as the operator has set."""


class ChatFields(Body):
    messages: Messages
    """The conversation; each member reads it through its own chat template."""
    add_generation_prompt: bool | None = None
    """Let the template open the answer. Default true."""
    continue_final_message: bool | None = None
    """Go on writing the last message instead of answering it."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add special tokens. Default false: chat templates write them."""
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MAX_VARIABLES), at_most(MAX_VARIABLES)] | None = (
        None
    )
    """Further variables of the chat template."""


class ChatCompletionRequest(SamplingFields, ChatFields):
    tools: Tools | None = None
    """Functions that the model may ask its caller to run."""
    tool_choice: Choice | None = None
    """`none`, `auto` (the default: the model decides), `required` (at least one call), or one function by its name."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may call several functions. Default true, where the model's template takes several."""
    reasoning_effort: Effort | None = None
    """How much to think before the answer: handed to a template that knows it, else a budget of tokens."""
    thinking_token_budget: Annotated[int, Field(ge=0, le=INT32)] | None = None
    """Most tokens of the thought, which is then closed so that an answer follows."""
    max_completion_tokens: Annotated[int, Field(ge=NO_LIMIT, le=INT32)] | None = None
    """The newer name of `max_tokens`; goes before it."""
    logprobs: bool | None = None
    """Report the log-probs of the answer's tokens under the composition."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """With `logprobs`: alternatives per token."""


class CompletionRequest(SamplingFields):
    prompt: (
        Prompt
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    """A text, an array of token ids, or a list of either; the empty text begins a new one."""
    echo: bool | None = None
    """Put the prompt before the answer; with `logprobs` it is scored."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Report log-probs under the composition, with this many alternatives per token."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add special tokens to a text. Default true."""


class ModelRequest(Body):
    """A model of the operator's file."""

    model: Name
    """Its name there."""


class Candidate(Target):
    """One of the compared answers; a bare string in `candidates` is a model id."""

    label: Annotated[str, Field(max_length=MAX_WORD)] | None = None
    """A name for this candidate in the answer. Default: its model."""


class CompareRequest(SamplingFields):
    """One prompt under several compositions; `model` is the default of candidates that name none."""

    prompt: str | None = None
    """The text that all candidates read; excludes `messages`."""
    messages: Messages | None = None
    """The conversation that all candidates read; excludes `prompt`."""
    candidates: Annotated[list[Name | Candidate], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)]
    """Model ids, or objects with `model`, `composition` and `label`."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Report log-probs, with this many alternatives per token."""
