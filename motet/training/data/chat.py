"""Conversations as their chat template writes them, with the tokens of the assistant's answers marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from motet.models.chat_template import PROBE
from motet.training.data.errors import RowError
from motet.training.data.messages import Messages, Tools
from motet.training.data.records import Answer, Record
from motet.training.data.rendered import Rendered
from motet.training.data.spans import REST, Span, char_weights, token_weights
from motet.training.data.tokens import Tokens


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer in the text of a conversation: the text that it follows and the text that ends with it, both beginnings
    of the whole, and the loss weight of what is between."""

    before: str
    through: str
    weight: float


@dataclass(frozen=True, slots=True)
class Chat:
    """A rendered conversation before it is tokenised."""

    part: Answer
    spans: tuple[Span, ...]
    text: str
    answers: list[AnswerText] = field(default_factory=list[AnswerText])


Outcome = Rendered | RowError


def render_chats(
    tokens: Tokens, items: Sequence[tuple[Answer, tuple[Span, ...]]], span_weights: Mapping[str, float], *, whole: bool
) -> list[Outcome]:
    """The conversations' documents; answers count, and the last token is EOS where the last message is an answer.

    Where a whole conversation is to be learnt and the template has `{% generation %}` marks, they say what counts;
    else an answer is what the template adds to the prompt (with the beginning of an answer behind it) for the answer.

    Args:
        whole: everything counts.
    """
    outcomes: list[Outcome | Chat] = [_prepare(tokens, part, spans, span_weights, whole) for part, spans in items]
    chats = [outcome for outcome in outcomes if isinstance(outcome, Chat)]
    finished = _finish(tokens, chats, span_weights)
    return [next(finished) if isinstance(outcome, Chat) else outcome for outcome in outcomes]


def answers_apart(tokens: Tokens, record: Record) -> list[Record]:
    """The record, or one for each of its answers where the template writes an answer otherwise once messages follow it
    (Qwen3 leaves the thinking of earlier turns out): each is then read as it is met when served."""
    part = record.sides.get("")
    if not isinstance(part, Answer) or len(part.turns) < 2:
        return [record]
    try:
        _together(tokens, part)
    except _ChangesThePast:
        return [replace(record, sides={"": _alone(part, turn)}) for turn in part.turns]
    except ValueError:  # is told when the record is rendered
        pass
    return [record]


def _alone(part: Answer, turn: int) -> Answer:
    messages = part.messages
    return replace(part, prompt=messages[:turn], completion=messages[turn : turn + 1])


def _prepare(
    tokens: Tokens, part: Answer, spans: tuple[Span, ...], span_weights: Mapping[str, float], whole: bool
) -> Outcome | Chat:
    try:
        _check_read(tokens, part)
        weighed = any(message.role == "assistant" and message.weight != 1 for message in part.messages)
        if tokens.marks_answers and not part.prompt and not spans and not weighed:
            return _marked(tokens, part, span_weights.get(REST, 1.0))
        if whole and not spans:  # spans are laid on one answer, which must be found
            text = tokens.trimmed(tokens.render(part.messages[: part.turns[-1] + 1], part.tools, for_answer=False))
            return Chat(part, spans, text, [AnswerText("", text, 1.0)])
        return Chat(part, spans, *(_single(tokens, part) if len(part.turns) == 1 else _together(tokens, part)))
    except ValueError as error:
        return error if isinstance(error, RowError) else RowError(str(error))


def _check_read(tokens: Tokens, part: Answer) -> None:
    """Raises RowError: something that a row says beside roles and contents does not show in the template's text."""
    for number, message in enumerate(part.messages, 1):
        for name in message.fields:
            pairs = name == "tool_call_id" or (name == "name" and message.role == "tool")  # the order says it too
            if not pairs and not _reads(tokens, part, number, name):
                raise RowError(f"message {number}: the chat template does not read {name}; leave it out of the rows")
    if part.tools and _text(tokens, part.messages, part.tools) == _text(tokens, part.messages, ()):
        raise RowError("tools: the chat template does not read them; leave them out of the rows")


def _reads(tokens: Tokens, part: Answer, number: int, name: str) -> bool:
    """Whether a message's field shows, with all messages or with it as the last one, as reasoning often does."""
    messages, message = part.messages, part.messages[number - 1]
    fields = {other: value for other, value in message.fields.items() if other != name}
    without = (*messages[: number - 1], message._replace(fields=fields), *messages[number:])
    return any(
        _text(tokens, messages[:stop], part.tools) != _text(tokens, without[:stop], part.tools)
        for stop in (len(messages), number)
    )


def _text(tokens: Tokens, messages: Messages, tools: Tools) -> str | None:
    """The rendered messages; None where the template refuses them."""
    try:
        return tokens.render(messages, tools, for_answer=False)
    except ValueError:
        return None


def _marked(tokens: Tokens, part: Answer, rest: float) -> Rendered:
    ids, counted = tokens.answer_mask(part.messages, part.tools)
    last = max((i for i, counts in enumerate(counted) if counts), default=-1)
    ids, counted = ids[: last + 1], counted[: last + 1]
    if ids and part.turns[-1] == len(part.messages) - 1 and ids[-1] != tokens.eos:
        ids, counted = [*ids, tokens.eos], [*counted, True]
    return Rendered(ids, counted, [rest] * len(ids))


class _ChangesThePast(RowError):
    """The template writes an answer otherwise when messages follow it."""


def _together(tokens: Tokens, part: Answer) -> tuple[str, list[AnswerText]]:
    """One text with all answers in it. Raises _ChangesThePast."""
    messages, last = part.messages, part.turns[-1]
    text = _through(tokens, part, last)
    pieces: list[AnswerText] = []
    for turn in part.turns:
        before = _before(tokens, part, turn)
        through = text if turn == last else _through(tokens, part, turn)
        if not text.startswith(before) or not text.startswith(through):
            raise _ChangesThePast(
                f"the chat template renders message {turn + 1} otherwise when more messages follow, "
                "so that its answer cannot be told apart; split the conversation into prompt and completion"
            )
        pieces.append(AnswerText(before, through, messages[turn].weight))
    return text, pieces


def _single(tokens: Tokens, part: Answer) -> tuple[str, list[AnswerText]]:
    """The one answer behind the prompt that it is served behind, whatever the template makes of both together."""
    (turn,) = part.turns
    before, text = _before(tokens, part, turn), _through(tokens, part, turn)
    if not text.startswith(before):
        text = before + _written(tokens, part, before, text)
    return text, [AnswerText(before, text, part.messages[turn].weight)]


def _written(tokens: Tokens, part: Answer, before: str, text: str) -> str:
    """The answer and its end as `text` has them, where `text` does not begin with the invitation to answer: templates
    of reasoning models invite with `<think>` and leave it out of answers that were given."""
    (turn,) = part.turns
    messages, content = part.messages, part.messages[turn].content
    other = replace(part, prompt=(), completion=(*messages[:turn], messages[turn]._replace(content=PROBE)))
    _, shown, end = _through(tokens, other, turn).rpartition(PROBE)
    answer = next((form for form in (content, content.strip()) if form and text.endswith(form + end)), None)
    if answer is None or not shown:
        raise RowError(
            f"the chat template invites an answer with {before[-20:]!r} and writes message {turn + 1} neither behind "
            "that nor as it stands"
        )
    invited = before.rstrip()
    doubled = next((n for n in range(len(invited), 1, -1) if answer.startswith(invited[-n:])), 0)
    return (answer[doubled:].lstrip("\n") if doubled else answer) + end


def _before(tokens: Tokens, part: Answer, turn: int) -> str:
    """What an answer is served behind."""
    if turn:
        return tokens.render(part.messages[:turn], part.tools, for_answer=True)
    return _heading(tokens, part, _through(tokens, part, turn))


def _through(tokens: Tokens, part: Answer, turn: int) -> str:
    return tokens.trimmed(tokens.render(part.messages[: turn + 1], part.tools, for_answer=False))


def _heading(tokens: Tokens, part: Answer, text: str) -> str:
    """What stands before an answer that comes first: templates render no empty conversation to say so."""
    first = part.messages[:1]
    bare, inviting = (tokens.render(first, part.tools, for_answer=for_answer) for for_answer in (False, True))
    before = text[: max(text.find(first[0].content), 0)]
    return before if before.endswith(inviting[len(bare) :]) else ""


def _finish(tokens: Tokens, chats: Sequence[Chat], span_weights: Mapping[str, float]) -> Iterator[Outcome]:
    """Tokenises all texts in two batches."""
    encoded = tokens.encode_with_offsets([chat.text for chat in chats])
    pieces = [(text, chat) for chat in chats for piece in chat.answers for text in (piece.before, piece.through)]
    prefixes = [text for text, chat in pieces if text != chat.text]
    ids_of = dict(zip(prefixes, tokens.encode(prefixes), strict=True))
    for chat, (ids, offsets) in zip(chats, encoded, strict=True):
        try:
            weights = _weights(chat, offsets, span_weights)
            counted = _counted(chat, ids, ids_of, weights)
        except RowError as error:
            yield error
            continue
        # a template without an end mark of its own leaves the end to us
        end = [] if ids[-1] == tokens.eos else [tokens.eos]
        rest = span_weights.get(REST, 1.0) * chat.answers[-1].weight
        yield Rendered([*ids, *end], counted + [True] * len(end), weights + [rest] * len(end))


def _counted(chat: Chat, ids: Sequence[int], ids_of: Mapping[str, list[int]], weights: list[float]) -> list[bool]:
    """Which tokens are answers'; their weights are multiplied by the answers'."""
    counted = [False] * len(ids)
    for piece in chat.answers:
        start = ids_of[piece.before]
        stop = ids if piece.through == chat.text else ids_of[piece.through]
        if list(ids[: len(start)]) != start or list(ids[: len(stop)]) != list(stop):
            raise RowError(
                "the answer's characters merge with those around it into common tokens: "
                f"the tokens of {piece.before[-20:]!r} are no beginning of those of the whole"
            )
        counted[len(start) : len(stop)] = [True] * (len(stop) - len(start))
        weights[len(start) : len(stop)] = [weight * piece.weight for weight in weights[len(start) : len(stop)]]
    return counted


def _weights(chat: Chat, offsets: Sequence[tuple[int, int]], span_weights: Mapping[str, float]) -> list[float]:
    rest = span_weights.get(REST, 1.0)
    if not chat.spans:
        return [rest] * len(offsets)
    content = chat.part.plain_completion
    shift = chat.text.find(content, len(chat.answers[-1].before))
    if shift < 0:
        raise RowError("spans: the chat template changes the answer's text, so that spans have no place in it")
    return token_weights(offsets, char_weights(content, chat.spans, span_weights), shift, rest)
