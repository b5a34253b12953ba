"""Texts that are scored or forced behind a prompt, and a scored prompt's own text: where their tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from motet.composers.plan import Prompt, Stream
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.highlights import with_keys
from motet.server.encodings import Encodings
from motet.server.http.errors import ApiError, invalid
from motet.server.prompts import AS_IS, PromptTokens, Text, check_tokens, text_read
from motet.server.query import RequestPrompt
from motet.server.role_prompts import as_role_reads

PLACE = "0of1prompt"  # renders as itself, whatever stands around it


def continuation(
    text: str, stream: Stream, member: LoadedModel, prompt: RequestPrompt, encodings: Encodings
) -> tuple[int, ...]:
    """Token ids of a text behind what the stream reads: tokenized together with it where that leaves the tokens before
    it as they are, so that their scores are those of the whole text; else by itself, without the space that some
    tokenizers begin a text with, unless it begins one. Behind messages the text is an answer, before which a template
    may write a space."""
    own = stream.prompt or AS_IS
    prompt = as_role_reads(prompt, own)
    read = text_read(prompt, own, member)
    if read is not None and read.text:
        if not text[:1].isspace():
            text = _space_before_answers(read.text, prompt, own, member) + text
        encodings.check_length(read.text + text, member, "continuations")
        before, whole = (encodings.ids(part, member, special=read.special) for part in (read.text, read.text + text))
        if whole[: len(before)] == before and len(whole) > len(before):
            return tuple(whole[len(before) :])
    encodings.check_length(text, member, "continuations")
    return tuple(encodings.ids(text, member, behind=_ends_in_text(read, prompt, member)))


def _ends_in_text(read: Text | None, prompt: RequestPrompt, member: LoadedModel) -> bool:
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
        answered = text_read(replace(prompt, messages=said, continue_final_message=True), own, member)
    except ApiError:  # a template that wants more of an answer than text, or refuses its place
        return ""
    space = "" if answered is None else answered.text.removeprefix(read).removesuffix("a")
    return space if space.isspace() else ""


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
    own = tokens.plan.streams[0].prompt or AS_IS
    if prompt.text is None or own.is_own or own.template != "chat" or own.swapped(prompt.text) != prompt.text:
        return None
    keys = tokens.pondered.get(0)
    asked = with_keys(prompt, keys.text) if keys is not None and keys.places else prompt
    read, marked = (text_read(one, own, base) for one in (asked, replace(asked, text=PLACE)))
    place = -1 if marked is None else marked.text.find(PLACE)
    if read is None or place < 0:
        return None
    text = prompt.text
    for left in (text, text.rstrip(), text.lstrip(), text.strip()):
        if read.text.startswith(left, place):
            taken = len(text) - len(text.lstrip()) if left == left.lstrip() else 0
            return RenderedText(read.text, place, place + len(left), taken)
    return None


def forced(
    text: str | list[int], stream: Stream, prompt: RequestPrompt, base: LoadedModel, encodings: Encodings, param: str
) -> tuple[int, ...]:
    """Token ids of a continuation, the same for all streams: those behind what the base's `stream` reads."""
    ids = tuple(text) if isinstance(text, list) else continuation(text, stream, base, prompt, encodings)
    if not ids:
        raise invalid(f"{param}: {text[:40]!r} has no tokens.", param)
    check_tokens(ids, base, param)
    return ids
