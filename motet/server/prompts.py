"""What each stream reads: the request's prompt, or the stream's own, rendered with that model's template; and how much
room that leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from motet.composers.plan import Plan, Prompt, Stream
from motet.models.tokenizer import ChatTemplateError
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.conversation import Conversation
from motet.server.dialogue.highlights import Highlights, behind_keys, to_ponder, with_keys
from motet.server.encodings import Encodings
from motet.server.http.errors import PROMPT_NOT_AS_TOKENS, ApiError, invalid
from motet.server.query import RequestPrompt
from motet.server.role_prompts import as_role_reads, is_said
from motet.server.shapes.requests import MAX_TOKENIZED
from motet.server.translation import check_scorable, own_ids, translated

DEFAULT_SHARE = 0.75  # of the KV memory that a choice may come to fill when the request sets no limit
# `apply_chat_template` reads these as its own arguments: as template variables they would change what is rendered.
RESERVED_VARIABLES = frozenset({
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self",
})  # fmt: skip

NOT_READ = "These messages cannot be read in this form."
AS_IS = Prompt()  # of streams that read the request's prompt


def contexts(
    plan: Plan,
    prompt: RequestPrompt,
    members: Mapping[str, LoadedModel],
    encodings: Encodings,
    pondered: Mapping[int, Highlights] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Token ids that each stream reads, all non-empty: an empty text is read as the beginning of a sequence.

    Args:
        pondered: what streams read once more, by their places; without it they read the prompt alone.

    Raises:
        ApiError: 400, an empty text where the model has no token to begin with, a prompt that was truncated to nothing,
            a template that refuses the messages, token ids outside of the vocabulary.
    """
    _check_variables(prompt.variables)
    keys = {k: one.text for k, one in (pondered or {}).items() if one.places}
    return tuple(
        context(stream, members[stream.model], prompt, encodings, keys.get(k)) for k, stream in enumerate(plan.streams)
    )


@dataclass(frozen=True)
class PromptTokens:
    """What the streams of a plan read, and the tokens that are then forced on all of them."""

    plan: Plan
    contexts: tuple[tuple[int, ...], ...]
    forced: tuple[int, ...] = ()
    param: str = "prompt"  # the request's field that is read
    pondered: Mapping[int, Highlights] = field(default_factory=dict[int, Highlights])  # by stream

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.contexts[0] + self.forced

    def sizes(self) -> list[int]:
        """Tokens of each stream before it generates."""
        if not self.forced:
            return [len(ids) for ids in self.contexts]
        pairs = zip(self.plan.streams, self.contexts, strict=True)
        return [len(ids) + len(translated(stream, self.forced)) for stream, ids in pairs]


def read(
    plan: Plan,
    prompt: RequestPrompt,
    members: Mapping[str, LoadedModel],
    encodings: Encodings,
    *,
    score_prompt: bool = False,
    pondered: Mapping[int, Highlights] | None = None,
) -> PromptTokens:
    """Renders the contexts. With `score_prompt` all but the prompt's first token is forced instead of read.

    Args:
        pondered: what is read once more, scored; without it the result says what has to be scored.

    Raises:
        ApiError: 400, as `contexts` does, or streams that read different prompts where the prompt is to be scored, or
            have other tokens, or none that can be pondered.
    """
    rendered = contexts(plan, prompt, members, encodings, pondered)
    if pondered is None:
        pondered = {
            k: to_ponder(stream, share, rendered[k], prompt, members[stream.model], encodings)
            for k, stream in enumerate(plan.streams)
            if stream.prompt is not None and (share := stream.prompt.pondered) is not None
        }
    if not score_prompt:
        return PromptTokens(plan, rendered, param=prompt.param, pondered=pondered)
    check_scorable(plan, "echo")
    pairs = zip(plan.streams, rendered, strict=True)
    unlike = next((k for k, (stream, ids) in enumerate(pairs) if ids != translated(stream, rendered[0])), None)
    if unlike is not None:
        raise invalid(
            "The log-probabilities of a prompt are those of one text, but role "
            f"{plan.streams[unlike].role!r} reads another prompt than the base. Score continuations with /v1/score.",
            "echo",
            "unlike_contexts",
        )
    return PromptTokens(plan, tuple(ids[:1] for ids in rendered), rendered[0][1:], prompt.param, pondered)


def max_new_tokens(tokens: PromptTokens, members: Mapping[str, LoadedModel], kv_budget: int, asked: int | None) -> int:
    """`asked`, cut to what the context of every stream's model holds; without it also to `kv_budget` bytes (0: no
    limit).

    Raises:
        ApiError: 400 context_length_exceeded, with the numbers.
    """
    models = [members[stream.model].info for stream in tokens.plan.streams]
    left = min(info.max_model_len - size for info, size in zip(models, tokens.sizes(), strict=True))
    if left < min(1 if asked is None else asked, 1):
        raise _too_long(tokens, members)
    if asked is not None:
        return min(asked, left)
    per_token = sum(members[stream.model].info.kv_bytes_per_token for stream in tokens.plan.readers)
    if not kv_budget or not per_token:
        return left
    held = int(kv_budget * DEFAULT_SHARE) // per_token
    read = max(size + info.virtual_tokens for info, size in zip(models, tokens.sizes(), strict=True))
    return max(1, min(left, held - read))


def _too_long(tokens: PromptTokens, members: Mapping[str, LoadedModel]) -> ApiError:
    """OpenAI's refusal, about the stream with the least room."""
    sizes = tokens.sizes()
    limits = [members[stream.model].info.max_model_len for stream in tokens.plan.streams]
    worst = min(range(len(sizes)), key=lambda k: limits[k] - sizes[k])
    stream, size = tokens.plan.streams[worst], sizes[worst]
    whose = f"model {stream.model!r}" + (f" in role {stream.role!r}" if len(sizes) > 1 else "")
    read = f"is {limits[worst]} tokens. However, your prompt has {size} tokens."
    return ApiError(
        400,
        f"The maximum context length of {whose} {read}",
        param=tokens.param,
        code="context_length_exceeded",
        # not by how much: what a member reads may be more or less than what the client sent
        public=f"The maximum context length is {min(limits)} tokens. Your prompt is longer.",
    )


def context(
    stream: Stream, member: LoadedModel, prompt: RequestPrompt, encodings: Encodings, keys: str | None = None
) -> tuple[int, ...]:
    """Token ids that a stream reads; `keys` are the text of its key tokens."""
    if prompt.tokens is not None and stream.tokens is not None:
        prompt = replace(prompt, tokens=own_ids(stream, prompt.tokens))
    if stream.prompt is None and keys is None:
        return tuple(_whole(prompt, AS_IS, stream, member, encodings))
    own = stream.prompt or AS_IS
    asked = as_role_reads(prompt, own)
    is_message = is_said(asked, own)
    asked = with_keys(asked, keys) if keys is not None and is_message else asked
    if own.is_own:
        ids = _render(asked, own, member, stream.role, encodings) or _start(member, "composition")
    else:
        ids = _whole(asked, own, stream, member, encodings)
    ids = ids[-own.last_tokens :] if own.last_tokens else ids
    return tuple(ids if keys is None or is_message else behind_keys(ids, keys, member, encodings))


def _whole(prompt: RequestPrompt, own: Prompt, stream: Stream, member: LoadedModel, encodings: Encodings) -> list[int]:
    """Token ids of the request's prompt, cut where the request asks for it."""
    ids = _render(prompt, own, member, stream.role, encodings) or _start(member, prompt.param)
    ids = _truncated(ids, prompt, member)
    if not ids:
        raise invalid("'truncate_prompt_tokens' leaves nothing of the prompt.", prompt.param, "empty_prompt")
    return ids


@dataclass(frozen=True, slots=True)
class Text:
    """What a member reads; `special`: whether the tokenizer adds its special tokens."""

    text: str
    special: bool


def _render(prompt: RequestPrompt, own: Prompt, member: LoadedModel, role: str, encodings: Encodings) -> list[int]:
    """Token ids of the prompt as this member reads it; none of an empty one."""
    read = text_read(prompt, own, member)
    if read is None:
        return _tokens(prompt.tokens or (), own, member, role)
    if prompt.truncate is None and own.last_tokens is None:
        encodings.check_length(read.text, member, prompt.param)
    elif len(read.text) > MAX_TOKENIZED:
        said = (
            f"A text of {len(read.text):,} characters is too long to be cut: at most {MAX_TOKENIZED:,}; send its end."
        )
        raise invalid(said, prompt.param, "context_length_exceeded")
    return encodings.ids(read.text, member, special=read.special) if read.text else []


def text_read(prompt: RequestPrompt, own: Prompt, member: LoadedModel) -> Text | None:
    """The text that this member reads, None for tokens. A template that a role asks for also wraps text, as one user
    message."""
    if prompt.messages is not None and (own.template or member.template) == "chat":
        return _chat(_conversation(prompt), prompt, member)
    if prompt.text is not None and own.template == "chat":
        return _chat(Conversation(({"role": "user", "content": prompt.text},)), prompt, member)
    if prompt.messages is not None:
        turns, _ = _conversation(prompt).read_by(None, in_words=member.describe_tools)
        return Text("\n".join(turn["content"] for turn in turns), special=True)
    return None if prompt.text is None else Text(prompt.text, prompt.add_special_tokens is not False)


def _conversation(prompt: RequestPrompt) -> Conversation:
    return Conversation(prompt.messages or (), prompt.tools, prompt.dialect)


def _chat(conversation: Conversation, prompt: RequestPrompt, member: LoadedModel) -> Text:
    tokenizer = member.tokenizer
    if not tokenizer.has_chat_template:
        said = "has no chat template; use template 'plain'."
        raise invalid(f"Model {member.info.name!r} {said}", prompt.param, public=NOT_READ)
    turns, tools = conversation.read_by(tokenizer.template, in_words=member.describe_tools)
    try:
        text = tokenizer.render_chat(
            turns,
            tools=tools,
            add_generation_prompt=prompt.add_generation_prompt and not prompt.continue_final_message,
            continue_final_message=prompt.continue_final_message,
            variables=prompt.variables,
        )
    except ChatTemplateError as error:
        said = f"Model {member.info.name!r}: {error}"
        raise invalid(said, "messages", "chat_template_error", public=NOT_READ) from error
    return Text(text, special=bool(prompt.messages and prompt.add_special_tokens))


def _tokens(tokens: tuple[int, ...], own: Prompt, member: LoadedModel, role: str) -> list[int]:
    if own.template == "chat":
        said = f"Role {role!r} reads the prompt through its chat template: send text, not tokens."
        raise invalid(said, "prompt", public=PROMPT_NOT_AS_TOKENS)
    check_tokens(tokens, member, "prompt")
    return list(tokens)


def check_tokens(tokens: Sequence[int], member: LoadedModel, param: str) -> None:
    """Raises ApiError (400) naming the first id that the model does not have."""
    width = member.info.vocab_size
    unknown = next((token for token in tokens if token >= width), None)
    if unknown is not None:
        said = f"{param}: token id {unknown} is not in the vocabulary"
        raise invalid(f"{said} (0 to {width - 1}).", param, public=f"{said}.")


def _check_variables(variables: Mapping[str, Any]) -> None:
    taken = sorted(RESERVED_VARIABLES & set(variables))
    if taken:
        raise invalid(f"'chat_template_kwargs' cannot set {', '.join(taken)}.", "chat_template_kwargs")
    if isinstance(variables.get("composition"), Mapping):
        said = "'composition' stands beside 'model', not inside of 'chat_template_kwargs'."
        raise invalid(said, "chat_template_kwargs", "unsupported_parameter")


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
        public="The prompt is empty.",
    )
