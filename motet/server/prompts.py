"""What each stream reads: the request's prompt, or the stream's own, rendered with that model's template; and how much
room that leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from motet.composers.plan import Plan, Prompt, Stream
from motet.models.chat_template import behind
from motet.models.tokenizer import ChatTemplateError
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.conversation import Conversation, Turn
from motet.server.dialogue.dialect import Dialect
from motet.server.dialogue.highlights import Highlights, last_question, preface, with_epilogue
from motet.server.encodings import Encodings
from motet.server.http.errors import ApiError, invalid
from motet.server.shapes.requests import MAX_TOKENIZED, Message
from motet.server.translation import check_scorable, own_ids, translated

DEFAULT_SHARE = 0.75  # of the KV memory that a choice may come to fill when the request sets no limit
# `apply_chat_template` reads these as its own arguments: as template variables they would change what is rendered.
RESERVED_VARIABLES = frozenset({
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self",
})  # fmt: skip

PLACE = "0of1prompt"  # renders as itself, whatever stands around it
NO_TEXT = frozenset({"role", "type", "id", "tool_call_id", "name"})  # of a turn: what its template goes by


@dataclass(frozen=True)
class RequestPrompt:
    """What the client sent: exactly one of `text`, `messages` (as templates read them) and `tokens`. `tools` are those
    that the model may call; `dialect` is the composition's.

    `add_special_tokens` None is the default of each form: on for text, off for a rendered chat (its template writes
    them). `truncate` keeps the last tokens (−1: as many as the model can read).
    """

    text: str | None = None
    messages: tuple[Turn, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    dialect: Dialect = field(default_factory=Dialect)
    tokens: tuple[int, ...] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    truncate: int | None = None

    @property
    def param(self) -> str:
        return "prompt" if self.messages is None else "messages"

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.messages or (), self.tools, self.dialect.calls, self.dialect.tags)


def prompt_of(given: str | list[int] | None, messages: Sequence[Message] | None) -> RequestPrompt:
    """Raises ApiError (400): both a prompt and messages, or neither."""
    if (given is None) == (messages is None):
        raise invalid("Give either 'prompt' or 'messages'.", "prompt")
    match given:
        case None:
            return RequestPrompt(messages=tuple(message.turn() for message in messages or []))
        case str(text):
            return RequestPrompt(text=text)
        case tokens:
            return RequestPrompt(tokens=tuple(tokens))


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
    check_variables(prompt.variables)
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
            k: _to_ponder(stream, share, rendered[k], prompt, members[stream.model], encodings)
            for k, stream in enumerate(plan.streams)
            if (share := (stream.prompt or Prompt()).pondered) is not None
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
        public=f"The maximum context length {read}",
    )


def context(
    stream: Stream, member: LoadedModel, prompt: RequestPrompt, encodings: Encodings, keys: str | None = None
) -> tuple[int, ...]:
    """Token ids that a stream reads; `keys` are the text of its key tokens."""
    own = stream.prompt or Prompt()
    if prompt.tokens is not None:
        prompt = replace(prompt, tokens=own_ids(stream, prompt.tokens))
    asked = _own(own) if own.is_own else _with_swaps(prompt, own)
    is_said = _is_said(asked, own)
    asked = with_keys(asked, keys) if keys is not None and is_said else asked
    ids = _render(asked, own, member, stream.role, encodings)
    ids = ids or _start(member, "composition" if own.is_own else prompt.param)
    if not own.is_own:
        ids = _truncated(ids, prompt, member)
        if not ids:
            raise invalid("'truncate_prompt_tokens' leaves nothing of the prompt.", prompt.param, "empty_prompt")
    ids = ids[-own.last_tokens :] if own.last_tokens else ids
    return tuple(ids if keys is None or is_said else _behind_keys(ids, keys, member, encodings))


def _is_said(prompt: RequestPrompt, own: Prompt) -> bool:
    """Whether a prompt is read as messages: it has some, or its text becomes one."""
    return prompt.messages is not None or (prompt.text is not None and own.template == "chat")


def with_keys(prompt: RequestPrompt, keys: str) -> RequestPrompt:
    """A prompt that is read as messages, with its key tokens at the end of the last user message."""
    if prompt.text is not None:
        return replace(prompt, text=with_epilogue(prompt.text, keys))
    turns = list(prompt.messages or ())
    place = last_question(turns)
    if place is not None:
        turns[place] = {**turns[place], "content": with_epilogue(turns[place]["content"], keys)}
    return replace(prompt, messages=tuple(turns))


def _behind_keys(ids: Sequence[int], keys: str, member: LoadedModel, encodings: Encodings) -> list[int]:
    """A text behind its key tokens, which stand behind what its tokenizer begins every text with."""
    begin = encodings.ids("", member, special=True)
    begin = begin if list(ids[: len(begin)]) == begin else []
    return [*begin, *encodings.ids(preface(keys), member), *ids[len(begin) :]]


def _to_ponder(
    stream: Stream, share: float, ids: tuple[int, ...], prompt: RequestPrompt, member: LoadedModel, encodings: Encodings
) -> Highlights:
    """What has to be scored of a stream's prompt, of which it reads `ids`: the last user message, or a text as it is.

    Raises:
        ApiError: 400, messages among which there is no user's, that are cut, or of which the user's is continued.
    """
    own = stream.prompt or Prompt()
    asked = _own(own) if own.is_own else prompt
    if not _is_said(asked, own):
        return Highlights(stream.model, share, ids, own.is_own)
    cut = own.last_tokens or (prompt.truncate if not own.is_own else None)
    turns = asked.messages if asked.messages is not None else ({"role": "user", "content": asked.text},)
    place = last_question(turns)
    if place is None:
        raise _not_pondered(stream, "and there is none", asked.param)
    if cut is not None:
        raise _not_pondered(stream, "and a chat that is cut may not hold it: leave the cut out", asked.param)
    if asked.continue_final_message and place == len(turns) - 1:
        raise _not_pondered(stream, "which 'continue_final_message' continues", "continue_final_message")
    message = str(turns[place]["content"])
    encodings.check_length(message, member, asked.param)
    return Highlights(stream.model, share, tuple(encodings.ids(message, member, special=True)), own.is_own)


def _own(own: Prompt) -> RequestPrompt:
    """A role's own prompt as a request would send it."""
    turns = [{"role": role, "content": content} for role, content in own.messages or ()]
    prompt = RequestPrompt(text=own.text, messages=None if own.messages is None else tuple(turns))
    return _with_swaps(prompt, own)


def continuation(
    text: str, stream: Stream, member: LoadedModel, prompt: RequestPrompt, encodings: Encodings
) -> tuple[int, ...]:
    """Token ids of a text behind what the stream reads: tokenized together with it where that leaves the tokens before
    it as they are, so that their scores are those of the whole text; else by itself, without the space that some
    tokenizers begin a text with, unless it begins one. Behind messages the text is an answer, before which a template
    may write a space."""
    own = stream.prompt or Prompt()
    prompt = _own(own) if own.is_own else _with_swaps(prompt, own)
    read = _read(prompt, own, member)
    if read is not None and read.text:
        if not text[:1].isspace():
            text = _space_before_answers(read.text, prompt, own, member) + text
        encodings.check_length(read.text + text, member, "continuations")
        before, whole = (encodings.ids(part, member, special=read.special) for part in (read.text, read.text + text))
        if whole[: len(before)] == before and len(whole) > len(before):
            return tuple(whole[len(before) :])
    encodings.check_length(text, member, "continuations")
    return tuple(encodings.ids(text, member, behind=_ends_in_text(read, prompt, member)))


def _ends_in_text(read: _Text | None, prompt: RequestPrompt, member: LoadedModel) -> bool:
    """Whether text follows on text: behind nothing, or a special token (BOS), it begins anew."""
    if read is not None:
        return bool(read.text)
    return bool(prompt.tokens) and prompt.tokens[-1] not in member.tokenizer.special_ids


def _space_before_answers(read: str, prompt: RequestPrompt, own: Prompt, member: LoadedModel) -> str:
    """What the template writes between `read`, the messages with its opening of an answer, and an answer: whitespace,
    or nothing where it cannot be told."""
    opened = prompt.messages is not None and prompt.add_generation_prompt and not prompt.continue_final_message
    if not opened or (own.template or member.template) != "chat":
        return ""
    said = (*(prompt.messages or ()), {"role": "assistant", "content": "a"})
    try:
        answered = _read(replace(prompt, messages=said, continue_final_message=True), own, member)
    except ApiError:  # a template that wants more of an answer than text, or refuses its place
        return ""
    space = "" if answered is None else answered.text.removeprefix(read).removesuffix("a")
    return space if space.isspace() else ""


def _with_swaps(prompt: RequestPrompt, own: Prompt) -> RequestPrompt:
    """The prompt with the names changed that a stream reads otherwise."""
    if not own.swaps:
        return prompt
    if prompt.tokens is not None:
        raise invalid("The composition changes names in the prompt: send text, not tokens.", "prompt")
    growth = 0

    def measured(text: str) -> str:
        nonlocal growth
        growth += own.growth(text)
        return text

    _with_texts((prompt.text, prompt.messages), measured)
    if growth > MAX_TOKENIZED:  # nothing is built that only a refusal can follow
        said = f"The names that the composition changes make the prompt longer by {growth:,} characters"
        raise invalid(f"{said}: at most {MAX_TOKENIZED:,}.", prompt.param, "context_length_exceeded")
    messages = prompt.messages and tuple(_with_texts(turn, own.swapped) for turn in prompt.messages)
    return replace(prompt, text=None if prompt.text is None else own.swapped(prompt.text), messages=messages)


def _with_texts(value: Any, changed: Callable[[str], str]) -> Any:
    """A turn with everything changed that the model reads as text: content, thoughts, arguments of calls."""
    match value:
        case str():
            return changed(value)
        case Mapping():
            turn = cast("Mapping[str, Any]", value)
            return {key: part if key in NO_TEXT else _with_texts(part, changed) for key, part in turn.items()}
        case list() | tuple():
            return [_with_texts(part, changed) for part in cast("Sequence[Any]", value)]
        case _:
            return value


def _not_pondered(stream: Stream, why: str, param: str) -> ApiError:
    message = f"Role {stream.role!r} reads key tokens at the end of the last user message, {why}."
    return ApiError(400, message, param=param, public=f"The last user message is needed as it is, {why}.")


@dataclass(frozen=True, slots=True)
class _Text:
    """What a member reads; `special`: whether the tokenizer adds its special tokens."""

    text: str
    special: bool


def _render(prompt: RequestPrompt, own: Prompt, member: LoadedModel, role: str, encodings: Encodings) -> list[int]:
    """Token ids of the prompt as this member reads it; none of an empty one."""
    read = _read(prompt, own, member)
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


def _read(prompt: RequestPrompt, own: Prompt, member: LoadedModel) -> _Text | None:
    """The text that this member reads, None for tokens. A template that a role asks for also wraps text, as one user
    message."""
    if prompt.messages is not None and (own.template or member.template) == "chat":
        return _chat(prompt.conversation, prompt, member)
    if prompt.text is not None and own.template == "chat":
        return _chat(Conversation(({"role": "user", "content": prompt.text},)), prompt, member)
    if prompt.messages is not None:
        turns, _ = prompt.conversation.read_by(None, in_words=member.describe_tools)
        return _Text("\n".join(turn["content"] for turn in turns), special=True)
    return None if prompt.text is None else _Text(prompt.text, prompt.add_special_tokens is not False)


def _chat(conversation: Conversation, prompt: RequestPrompt, member: LoadedModel) -> _Text:
    tokenizer = member.tokenizer
    if not tokenizer.has_chat_template:
        raise invalid(f"Model {member.info.name!r} has no chat template; use template 'plain'.", prompt.param)
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
        raise invalid(f"Model {member.info.name!r}: {error}", "messages", "chat_template_error") from error
    return _Text(text, special=bool(prompt.messages and prompt.add_special_tokens))


def opens_thought(plan: Plan, prompt: RequestPrompt, members: Mapping[str, LoadedModel]) -> bool | None:
    """Whether the prompt of the thinking member ends within a thought, or behind one; None: it says nothing of
    thoughts, so that the answer itself may begin one. Only what the template writes to open the answer counts, never
    what a message says."""
    stream, tags = plan.streams[prompt.dialect.thinker], prompt.dialect.tags
    member, own = members[stream.model], stream.prompt or Prompt()
    if tags is None or own.text is not None:
        return None
    asked = prompt if own.messages is None else _own(own)
    if asked.continue_final_message and asked.messages:
        opening = asked.messages[-1]["content"]
    else:
        texts = (_read(one, own, member) for one in (asked, replace(asked, add_generation_prompt=False)))
        whole, before = ("" if text is None else text.text for text in texts)
        opening = behind(before, whole)
    begun = opening.rfind(tags.begin)
    return None if begun < 0 else begun > opening.rfind(tags.end)


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


@dataclass(frozen=True, slots=True)
class RenderedText:
    """What a template made of a text: that stands in it between two characters, or, where the template takes spaces
    from its ends, what is left of it behind the first `num_taken`."""

    text: str
    begin: int
    end: int
    num_taken: int

    def places(self, begins: Sequence[int], length: int) -> list[int]:
        """Where tokens that begin so in the whole begin in the text, which has `length` characters: those before it at
        its begin, those behind it at its end."""
        moved = self.num_taken - self.begin
        return [0 if at < self.begin else at + moved if at < self.end else length for at in begins]


def rendered_text(tokens: PromptTokens, prompt: RequestPrompt, base: LoadedModel) -> RenderedText | None:
    """What the base's template made of the request's text; None: the base reads it as it is, or another."""
    own = tokens.plan.streams[0].prompt or Prompt()
    if prompt.text is None or own.is_own or own.template != "chat" or own.swapped(prompt.text) != prompt.text:
        return None
    keys = tokens.pondered.get(0)
    asked = with_keys(prompt, keys.text) if keys is not None and keys.places else prompt
    read, marked = (_read(one, own, base) for one in (asked, replace(asked, text=PLACE)))
    place = -1 if marked is None else marked.text.find(PLACE)
    if read is None or place < 0:
        return None
    text = prompt.text
    for left in (text, text.rstrip(), text.lstrip(), text.strip()):
        if read.text.startswith(left, place):
            taken = len(text) - len(text.lstrip()) if left == left.lstrip() else 0
            return RenderedText(read.text, place, place + len(left), taken)
    return None


def check_variables(variables: Mapping[str, Any]) -> None:
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
    )
