"""Conversations as their chat template writes them, with the tokens of the assistant's answers marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from motet.training.data.errors import RowError
from motet.training.data.messages import Messages
from motet.training.data.records import Answer
from motet.training.data.rendered import Rendered
from motet.training.data.spans import REST, Span, char_weights, token_weights
from motet.training.data.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Chat:
    """A rendered conversation before it is tokenised. `prefixes` are, for each answer, the text that it follows and
    the text that ends with it, both beginnings of `text`."""

    part: Answer
    spans: tuple[Span, ...]
    text: str
    prefixes: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


Outcome = Rendered | RowError


def render_chats(
    tokens: Tokens, items: Sequence[tuple[Answer, tuple[Span, ...]]], span_weights: Mapping[str, float]
) -> list[Outcome]:
    """The conversations' documents; answers count, and the last token is EOS where the last message is an answer.

    Where a whole conversation is to be learnt and the template has `{% generation %}` marks, they say what counts;
    else an answer is what the template adds to the prompt (with the beginning of an answer behind it) for the answer.
    """
    outcomes: list[Outcome | Chat] = [_prepare(tokens, part, spans, span_weights) for part, spans in items]
    chats = [outcome for outcome in outcomes if isinstance(outcome, Chat)]
    finished = _finish(tokens, chats, span_weights)
    return [next(finished) if isinstance(outcome, Chat) else outcome for outcome in outcomes]


def _prepare(
    tokens: Tokens, part: Answer, spans: tuple[Span, ...], span_weights: Mapping[str, float]
) -> Outcome | Chat:
    try:
        if tokens.marks_answers and not part.prompt and not spans:
            return _marked(tokens, part, span_weights.get(REST, 1.0))
        return _chat(tokens, part, spans)
    except ValueError as error:
        return error if isinstance(error, RowError) else RowError(str(error))


def _marked(tokens: Tokens, part: Answer, rest: float) -> Rendered:
    ids, counted = tokens.answer_mask(part.messages)
    last = max((i for i, counts in enumerate(counted) if counts), default=-1)
    ids, counted = ids[: last + 1], counted[: last + 1]
    if ids and part.turns[-1] == len(part.messages) - 1 and ids[-1] != tokens.eos:
        ids, counted = [*ids, tokens.eos], [*counted, True]
    return Rendered(ids, counted, [rest] * len(ids))


def _chat(tokens: Tokens, part: Answer, spans: tuple[Span, ...]) -> Chat:
    messages, last = part.messages, part.turns[-1]
    text = tokens.trimmed(tokens.render(messages[: last + 1], for_answer=False))
    prefixes: list[tuple[str, str]] = []
    for turn in part.turns:
        before = tokens.render(messages[:turn], for_answer=True) if turn else _heading(tokens, messages[:1], text)
        through = text if turn == last else tokens.trimmed(tokens.render(messages[: turn + 1], for_answer=False))
        if not text.startswith(before) or not text.startswith(through):
            raise RowError(
                f"the chat template renders message {turn + 1} otherwise when more messages follow, "
                "so that its answer cannot be told apart; split the conversation into prompt and completion"
            )
        prefixes.append((before, through))
    return Chat(part, spans, text, prefixes)


def _heading(tokens: Tokens, first: Messages, text: str) -> str:
    """What stands before an answer that comes first: templates render no empty conversation to say so."""
    bare, inviting = (tokens.render(first, for_answer=for_answer) for for_answer in (False, True))
    before = text[: max(text.find(first[0].content), 0)]
    return before if before.endswith(inviting[len(bare) :]) else ""


def _finish(tokens: Tokens, chats: Sequence[Chat], span_weights: Mapping[str, float]) -> Iterator[Outcome]:
    """Tokenises all texts in two batches."""
    encoded = tokens.encode_with_offsets([chat.text for chat in chats])
    prefixes = [text for chat in chats for pair in chat.prefixes for text in pair if text != chat.text]
    ids_of = dict(zip(prefixes, tokens.encode(prefixes), strict=True))
    for chat, (ids, offsets) in zip(chats, encoded, strict=True):
        try:
            counted = _counted(chat, ids, ids_of)
            weights = _weights(chat, offsets, span_weights)
        except RowError as error:
            yield error
            continue
        # a template without an end mark of its own leaves the end to us
        end = [] if ids[-1] == tokens.eos else [tokens.eos]
        yield Rendered([*ids, *end], counted + [True] * len(end), weights + [span_weights.get(REST, 1.0)] * len(end))


def _counted(chat: Chat, ids: Sequence[int], ids_of: Mapping[str, list[int]]) -> list[bool]:
    counted = [False] * len(ids)
    for before, through in chat.prefixes:
        start = ids_of[before]
        stop = ids if through == chat.text else ids_of[through]
        if list(ids[: len(start)]) != start or list(ids[: len(stop)]) != list(stop):
            raise RowError(
                "the answer's characters merge with those around it into common tokens: "
                f"the tokens of {before[-20:]!r} are no beginning of those of the whole"
            )
        counted[len(start) : len(stop)] = [True] * (len(stop) - len(start))
    return counted


def _weights(chat: Chat, offsets: Sequence[tuple[int, int]], span_weights: Mapping[str, float]) -> list[float]:
    rest = span_weights.get(REST, 1.0)
    if not chat.spans:
        return [rest] * len(offsets)
    content = chat.part.plain_completion
    shift = chat.text.find(content, len(chat.prefixes[-1][0]))
    if shift < 0:
        raise RowError("spans: the chat template changes the answer's text, so that spans have no place in it")
    return token_weights(offsets, char_weights(content, chat.spans, span_weights), shift, rest)
