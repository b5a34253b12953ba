"""Request bodies of what is asked about texts and tokens as they are: no answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from motet.server.shapes.requests import (
    MAX_CHOICES,
    MAX_TOKENIZED,
    Body,
    CacheSalt,
    Messages,
    Name,
    Prompt,
    PromptIds,
    Target,
    Text,
    TokenIds,
    TraceOptions,
)


class TokenizeRequest(Body):
    """Text or messages; `model` may be missing where all models have one vocabulary."""

    model: Name | None = None
    """Whose tokenizer; a composition has its base's."""
    prompt: Annotated[str, Field(max_length=MAX_TOKENIZED)] | None = None
    """The text; excludes `messages`."""
    messages: Messages | None = None
    """The conversation, rendered with the chat template; excludes `prompt`."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add special tokens. Default: true for a text, false for messages."""
    add_generation_prompt: bool | None = None
    """Let the template open the answer. Default true."""
    continue_final_message: bool | None = None
    """Leave the last message open."""
    return_token_strs: bool | None = None
    """Also return the tokens as the vocabulary spells them."""


class DetokenizeRequest(Body):
    model: Name | None = None
    """Whose tokenizer; may be missing where all models have one vocabulary."""
    tokens: PromptIds
    """Token ids."""


class ScoreRequest(Target):
    """Log-probabilities of continuations of one prompt under a composition."""

    prompt: Prompt | None = None
    """The text or token ids before the continuations; excludes `messages`."""
    messages: Messages | None = None
    """The conversation before the continuations; excludes `prompt`."""
    continuations: Annotated[list[Text | TokenIds], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    """Texts or arrays of token ids, each scored behind the prompt; all scores and traces together hold at most 262,144
    log-probs. Behind `messages` a text is an answer, and gets the space that the chat template writes before one."""
    cache_salt: CacheSalt | None = None
    """Only requests with the same salt, and the same API key, share what was computed of their prompts."""
    trace: bool | TraceOptions | None = None
    """Report what each member did to each token, under `data[].motet.trace`."""
