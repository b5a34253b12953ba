"""Key tokens of a prompt, those that its model finds least likely, and where they are read once more (SH2, Kai et al.
2024, arXiv:2401.05930)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from motet.composers.plan import Prompt, Stream
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.conversation import Turn
from motet.server.encodings import Encodings
from motet.server.http.errors import ApiError
from motet.server.query import RequestPrompt
from motet.server.role_prompts import is_said, own_prompt

DIGITS = 4  # of log-probs that are compared: what lies behind them changes with the batch
ROUNDING = 1e-9  # 0.29 · 100 is 28.999999999999996


@dataclass(frozen=True)
class Highlights:
    """What a stream ponders. `ids` are scored: the prompt, or the last user message; `logprobs` are those of all but
    the first. `places` of key tokens in `ids`, ascending, and their `text`: none before it is scored.

    `is_own`: it is the composition's prompt, not the request's.
    """

    model: str
    share: float
    ids: tuple[int, ...]
    is_own: bool = False
    logprobs: tuple[float, ...] = ()
    places: tuple[int, ...] = ()
    text: str = ""


def least_likely(
    ids: Sequence[int], logprobs: Sequence[float], share: float, special: Collection[int]
) -> tuple[int, ...]:
    """Places of the `share` of tokens with the lowest log-probs, ascending; of equal ones the first.

    Args:
        logprobs: one for each token but the first, which nothing predicts.
        special: ids that are never key tokens.
    """
    places = [place for place in range(1, len(ids)) if ids[place] not in special]
    count = max(1, int(share * len(places) + ROUNDING))
    lowest = sorted(places, key=lambda place: (round(logprobs[place - 1], DIGITS), place))
    return tuple(sorted(lowest[:count]))


def last_question(turns: Sequence[Turn]) -> int | None:
    """The place of the last user message."""
    return next((place for place in reversed(range(len(turns))) if turns[place]["role"] == "user"), None)


def with_epilogue(said: str, keys: str) -> str:
    """A message that is followed by its key tokens."""
    return f"{said}\nPondering: {keys}"


def preface(keys: str) -> str:
    """What stands before a text whose key tokens these are."""
    return f"Pondering: {keys}\n\nContext:"


def with_keys(prompt: RequestPrompt, keys: str) -> RequestPrompt:
    """A prompt that is read as messages, with its key tokens at the end of the last user message."""
    if prompt.text is not None:
        return replace(prompt, text=with_epilogue(prompt.text, keys))
    turns = list(prompt.messages or ())
    place = last_question(turns)
    if place is not None:
        turns[place] = {**turns[place], "content": with_epilogue(turns[place]["content"], keys)}
    return replace(prompt, messages=tuple(turns))


def behind_keys(ids: Sequence[int], keys: str, member: LoadedModel, encodings: Encodings) -> list[int]:
    """A text behind its key tokens, which stand behind what its tokenizer begins every text with."""
    begin = encodings.ids("", member, special=True)
    begin = begin if list(ids[: len(begin)]) == begin else []
    return [*begin, *encodings.ids(preface(keys), member), *ids[len(begin) :]]


def to_ponder(
    stream: Stream, share: float, ids: tuple[int, ...], prompt: RequestPrompt, member: LoadedModel, encodings: Encodings
) -> Highlights:
    """What has to be scored of a stream's prompt, of which it reads `ids`: the last user message, or a text as it is.

    Raises:
        ApiError: 400, messages among which there is no user's, that are cut, or of which the user's is continued.
    """
    own = stream.prompt or Prompt()
    asked = own_prompt(own) if own.is_own else prompt
    if not is_said(asked, own):
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


def _not_pondered(stream: Stream, why: str, param: str) -> ApiError:
    message = f"Role {stream.role!r} reads key tokens at the end of the last user message, {why}."
    return ApiError(400, message, param=param, public=f"The last user message is needed as it is, {why}.")
