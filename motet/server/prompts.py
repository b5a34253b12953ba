"""Each stream's context: the request's prompt, or the stream's own, rendered with that model's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from motet.composers.plan import Plan, Prompt, Stream
from motet.models.tokenizer import ChatTemplateError
from motet.operator.registry import LoadedModel
from motet.server.errors import invalid

# `apply_chat_template` reads these as its own arguments: as template variables they would change what is rendered.
RESERVED_VARIABLES = frozenset({
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self",
})  # fmt: skip


@dataclass(frozen=True)
class RequestPrompt:
    """What the client sent: exactly one of `text`, `messages` ((role, content) pairs) and `tokens`.

    `add_special_tokens` None is the default of each form: on for text, off for a rendered chat (its template writes
    them). `truncate` keeps the last tokens (−1: as many as the model can read).
    """

    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    tokens: tuple[int, ...] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    truncate: int | None = None

    @property
    def param(self) -> str:
        return "prompt" if self.messages is None else "messages"


def contexts(plan: Plan, prompt: RequestPrompt, members: Mapping[str, LoadedModel]) -> tuple[tuple[int, ...], ...]:
    """Token ids that each stream reads, all non-empty: an empty text is read as the beginning of a sequence.

    Raises:
        ApiError: 400, an empty text where the model has no token to begin with, a prompt that was truncated to nothing,
            a template that refuses the messages, token ids outside of the vocabulary.
    """
    check_variables(prompt.variables)
    return tuple(context(stream, members[stream.model], prompt) for stream in plan.streams)


def context(stream: Stream, member: LoadedModel, prompt: RequestPrompt) -> tuple[int, ...]:
    own = stream.prompt or Prompt()
    if own.text is not None or own.messages is not None:
        ids = _render(RequestPrompt(text=own.text, messages=own.messages), own, member, stream.role)
        ids = ids or _start(member, "composition")
    else:
        ids = _render(prompt, own, member, stream.role) or _start(member, prompt.param)
        ids = _truncated(ids, prompt, member)
        if not ids:
            raise invalid("'truncate_prompt_tokens' leaves nothing of the prompt.", prompt.param, "empty_prompt")
    return tuple(ids[-own.last_tokens :] if own.last_tokens else ids)


def continuation(text: str, stream: Stream, member: LoadedModel, prompt: RequestPrompt) -> tuple[int, ...]:
    """Token ids of a text behind what the stream reads: tokenized together with it where that leaves the tokens before
    it as they are, so that their scores are those of the whole text; else by itself."""
    own = stream.prompt or Prompt()
    if own.text is not None or own.messages is not None:
        prompt = RequestPrompt(text=own.text, messages=own.messages)
    read = _read(prompt, own, member)
    if read is not None and read.text:
        before, whole = read.ids(member), _Text(read.text + text, read.special).ids(member)
        if whole[: len(before)] == before and len(whole) > len(before):
            return tuple(whole[len(before) :])
    return tuple(member.tokenizer.encode(text))


@dataclass(frozen=True, slots=True)
class _Text:
    """What a member reads; `special`: whether the tokenizer adds its special tokens."""

    text: str
    special: bool

    def ids(self, member: LoadedModel) -> list[int]:
        return member.tokenizer.encode(self.text, add_special_tokens=self.special) if self.text else []


def _render(prompt: RequestPrompt, own: Prompt, member: LoadedModel, role: str) -> list[int]:
    """Token ids of the prompt as this member reads it; none of an empty one."""
    read = _read(prompt, own, member)
    return _tokens(prompt.tokens or (), own, member, role) if read is None else read.ids(member)


def _read(prompt: RequestPrompt, own: Prompt, member: LoadedModel) -> _Text | None:
    """The text that this member reads, None for tokens. A template that a role asks for also wraps text, as one user
    message."""
    if prompt.messages is not None and (own.template or member.template) == "chat":
        return _chat(prompt.messages, prompt, member)
    if prompt.text is not None and own.template == "chat":
        return _chat([("user", prompt.text)], prompt, member)
    if prompt.messages is not None:
        return _Text(plain(prompt.messages), special=True)
    return None if prompt.text is None else _Text(prompt.text, prompt.add_special_tokens is not False)


def plain(messages: Sequence[tuple[str, str]]) -> str:
    """The plain template: the messages' contents, one per line."""
    return "\n".join(content for _, content in messages)


def _chat(messages: Sequence[tuple[str, str]], prompt: RequestPrompt, member: LoadedModel) -> _Text:
    if not member.tokenizer.has_chat_template:
        raise invalid(f"Model {member.info.name!r} has no chat template; use template 'plain'.", prompt.param)
    try:
        text = member.tokenizer.render_chat(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=prompt.add_generation_prompt and not prompt.continue_final_message,
            continue_final_message=prompt.continue_final_message,
            variables=prompt.variables,
        )
    except ChatTemplateError as error:
        raise invalid(f"Model {member.info.name!r}: {error}", "messages", "chat_template_error") from error
    return _Text(text, special=bool(prompt.messages and prompt.add_special_tokens))


def _tokens(tokens: tuple[int, ...], own: Prompt, member: LoadedModel, role: str) -> list[int]:
    if own.template == "chat":
        raise invalid(f"Role {role!r} reads the prompt through its chat template: send text, not tokens.", "prompt")
    check_tokens(tokens, member, "prompt")
    return list(tokens)


def check_tokens(tokens: Sequence[int], member: LoadedModel, param: str) -> None:
    """Raises ApiError (400) naming the first id that the model does not have."""
    width = member.info.vocab_size
    unknown = next((token for token in tokens if token >= width), None)
    if unknown is not None:
        raise invalid(f"{param}: token id {unknown} is not in the vocabulary (0 to {width - 1}).", param)


def check_variables(variables: Mapping[str, Any]) -> None:
    taken = sorted(RESERVED_VARIABLES & set(variables))
    if taken:
        raise invalid(f"'chat_template_kwargs' cannot set {', '.join(taken)}.", "chat_template_kwargs")


def _truncated(ids: list[int], prompt: RequestPrompt, member: LoadedModel) -> list[int]:
    if prompt.truncate is None:
        return ids
    keep = member.info.max_model_len - 1 if prompt.truncate == -1 else prompt.truncate
    return ids[-keep:] if keep else []


def _start(member: LoadedModel, param: str) -> list[int]:
    """What an empty text is read as: the beginning of a sequence."""
    ids = member.tokenizer.encode("", add_special_tokens=True)
    start = member.tokenizer.start_id
    if ids or start is not None:
        return ids or [start or 0]
    raise invalid(
        f"The prompt is empty, and the tokenizer of model {member.info.name!r} has no token to begin a text with "
        "(bos_token or eos_token).",
        param,
        "empty_prompt",
    )
