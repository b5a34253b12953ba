"""The text of one choice while its tokens come: what is certain of it, stop strings, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenizers.decoders import DecodeStream

from motet.engines.outputs import TokenOutput
from motet.models.tokenizer import REPLACEMENT, Tokenizer
from motet.models.tool_calls import Part, Said
from motet.server.continuations import RenderedText
from motet.server.dialogue.parts import PartsReader, merged
from motet.server.prepare import Job
from motet.server.query import Display

CONTEXT = 6  # prompt tokens that the decoder sees, so that the first new token keeps its leading space
SETTLE = 24  # held tokens after which bytes that never become a character are emitted as they are


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one step adds to a choice: text, the tokens it took and, at the end, why it ended.

    `prompt`: the tokens are the echoed or scored prompt's (all but its first). `stop_reason` is the stop string or
    stop token that ended it. `offsets`: where each of the tokens begins in the choice's text, in characters; tokens
    that are parts of one character share its place. The prompt's are left out: see `prompt_offsets`. `parts`: what of
    a message became certain; `has_called`: they call functions, and no call is open.
    """

    text: str
    tokens: tuple[TokenOutput, ...] = ()
    offsets: tuple[int, ...] = ()
    prompt: bool = False
    finish: str | None = None
    stop_reason: str | int | None = None
    parts: tuple[Part, ...] = ()
    has_called: bool = False


class ChoiceText:
    """Reads the outputs of one choice of a job in order."""

    def __init__(self, job: Job, show: Display) -> None:
        self._job = job
        self._show = show
        self._forced: list[TokenOutput] = []
        self._text = Detokenizer(
            job.tokenizer, job.prompt_ids, skip_special_tokens=show.skip_special_tokens, shown=job.syntax.shown
        )
        self._parts = None if job.is_plain else PartsReader(job.syntax)
        self._stops = StopStrings(show.stops, include=show.include_stop)
        self._decoded = 0  # characters, also of what is held back
        self._shown = 0
        self.num_tokens = 0
        self.finished = False

    def opening(self) -> TextPiece | None:
        """What is known before the first output: the echo of a prompt that is not scored, or an empty answer."""
        nothing = self.finished = not self._job.computes
        text = self._echo() if not self._job.num_scored else ""
        return TextPiece(text, prompt=True, finish="length" if nothing else None) if text or nothing else None

    def _echo(self) -> str:
        if not self._show.echo:
            return ""
        self._decoded = self._shown = len(self._job.echo)
        return self._job.echo

    def read(self, output: TokenOutput) -> TextPiece | None:
        """The piece that this output completes, None while it is held back."""
        if output.forced and len(self._forced) < self._job.num_scored:
            return self._read_forced(output)
        output = replace(output, forced=False)  # what an answer begins with is a part of it
        self.num_tokens += 1
        held = self._text.num_held
        text = self._decode(output)
        offset = self._decoded + self._text.begin_of(output.token, text, held)
        self._decoded += len(text)
        return self._cut(output, text, offset)

    def _read_forced(self, output: TokenOutput) -> TextPiece | None:
        self._forced.append(output)
        if len(self._forced) < self._job.num_scored:
            return None
        self.finished = output.finish is not None
        return TextPiece(self._echo(), tuple(self._forced), prompt=True, finish=output.finish)

    def _decode(self, output: TokenOutput) -> str:
        """The text that became certain; a token that the engine stopped at is not part of the answer."""
        hidden = output.finish == "stop" and not self._show.include_stop
        text = "" if hidden else self._text.push(output.token)
        return text + self._text.flush() if output.finish else text

    def _cut(self, output: TokenOutput, text: str, offset: int) -> TextPiece:
        stop: str | None = None
        if self.num_tokens > self._show.min_tokens or not self._show.stops:
            text, stop = self._stops.push(text)
        finish = "stop" if stop is not None else output.finish
        if finish is not None and stop is None:
            text += self._stops.flush()
        self.finished = finish is not None
        self._shown += len(text)
        begins = min(offset, self._shown) if self.finished else offset  # a stop string has taken what it stood in
        reason = self._reason(output, stop)
        parts, called = ((Said(text),) if text else ()), False
        if self._parts is not None:
            is_cut = self.finished and (finish != "stop" or reason is not None)
            parts = tuple(merged(self._parts.read(text, is_last=self.finished, is_cut=is_cut)))
            called = self._parts.has_called
        return TextPiece(text, (output,), (begins,), finish=finish, stop_reason=reason, parts=parts, has_called=called)

    @property
    def num_thought(self) -> int:
        """Tokens of the thought before the answer."""
        return 0 if self._parts is None else self._parts.num_thought

    def _reason(self, output: TokenOutput, stop: str | None) -> str | int | None:
        if stop is not None:
            return stop
        explicit = output.token in self._job.request.sampling.stop_token_ids
        return output.token if output.finish == "stop" and explicit else None


class Detokenizer:
    """One choice's text. The concatenation of all `push` and the final `flush` equals decoding all ids at once.

    One exception: tokenizers that fall back to bytes decode a run of byte tokens with one broken character in it to
    nothing but U+FFFD, also the characters before it, which were right when they were shown. These stay shown.

    Args:
        context: the tokens before.
        shown: special tokens that are shown, by their texts, though others are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._shown = (shown or {}) if skip_special_tokens else {}
        self._held: list[int] = []
        self._before = self._usable(context)
        self._stream = self._new_stream()

    def _usable(self, context: Sequence[int]) -> list[int]:
        """The end of the prompt; nothing where it breaks off inside of a character."""
        ids = list(context[-CONTEXT:])
        text = self._decode(ids)
        return ids if text and not text.endswith(REPLACEMENT) else []

    @property
    def num_held(self) -> int:
        """Whole characters of what is held."""
        return len(self._text(self._held).rstrip(REPLACEMENT)) if self._held else 0

    def begin_of(self, token: int, text: str, held: int) -> int:
        """Where a token begins in the text that became certain with it, when `held` whole characters were held: behind
        what was held where it is whole characters itself, since bytes that became none are shown as U+FFFD then."""
        own = self._tokenizer.text_of(token)
        return len(text) - len(own) if len(text) > len(own) and text.endswith(own) and REPLACEMENT not in own else held

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._before, skip_special_tokens=self._skip)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def push(self, token: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        if token in self._shown:
            text = self.flush() + self._shown[token]
            self._before = []
            self._stream = self._new_stream()
            return text
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer.backend, token)
        except Exception:  # the library's only type, for a token that would change what has been shown
            return self._begin_anew()
        if text is not None:
            self._before = self._held
            self._held = []
            return text
        return self._settle() if len(self._held) > SETTLE else ""

    def _begin_anew(self) -> str:
        """Shows what is held by itself, whatever stood before it."""
        text, self._before, self._held = self._decode(self._held), self._held, []
        self._stream = self._new_stream()
        return text

    def flush(self) -> str:
        """What is still held, as the whole would decode it (U+FFFD for broken characters)."""
        text = self._text(self._held)
        self._before, self._held = self._before + self._held, []
        return text

    def _text(self, ids: Sequence[int]) -> str:
        before, whole = self._decode(self._before), self._decode([*self._before, *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def _settle(self) -> str:
        """Emits all but the last held tokens, cut where the two parts decode as the whole does.

        Without it a run of bytes that are no text would be held, and decoded again for each token, to the end.
        """
        for cut in range(len(self._held) - 4, len(self._held) - 12, -1):
            head, tail = self._held[:cut], self._held[cut:]
            if self._text(head) + self._decode(tail) == self._text(self._held):
                text, self._before, self._held = self._text(head), [], []
                self._stream = self._new_stream()
                return text + "".join(self.push(token) for token in tail)
        return ""


def offsets_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token begins in what all of them decode to, special tokens included."""
    text, decoded, offsets = Detokenizer(tokenizer, skip_special_tokens=False), 0, list[int]()
    for token in ids:
        held = text.num_held
        certain = text.push(token)
        offsets.append(decoded + text.begin_of(token, certain, held))
        decoded += len(certain)
    return offsets


def prompt_offsets(job: Job, show: Display) -> tuple[int, ...]:
    """Where a scored prompt's tokens begin in its echo, behind the first, which begins it. Takes some 5 µs a token."""
    if not show.echo or show.logprobs is None:
        return (0,) * job.num_scored
    return tuple(echo_offsets(job.prompt_ids, job.prompt_text, job.tokenizer, job.rendered)[1:])


def echo_offsets(
    ids: Sequence[int], text: str | None, tokenizer: Tokenizer, rendered: RenderedText | None = None
) -> list[int]:
    """Where each token of a prompt begins in its echo: the text that it was read from, None for what it decodes to.
    Tokens that the tokenizer put around the text, or the template that `rendered` it, have no place of their own in it:
    they stand at its begin or its end."""
    if text is None:
        return offsets_of(ids, tokenizer)
    if rendered is not None and tokenizer.encode(rendered.text) == list(ids):
        whole = tokenizer.decode(ids) == rendered.text
        begins = offsets_of(ids, tokenizer) if whole else tokenizer.offsets_in(rendered.text, add_special_tokens=False)
        return rendered.places(begins, len(text))
    plain = tokenizer.encode(text)
    added = next((n for n in range(len(ids) - len(plain) + 1) if list(ids[n : n + len(plain)]) == plain), None)
    if added is not None and tokenizer.decode(plain) == text:
        inner = offsets_of(plain, tokenizer)
        return [0] * added + inner + [len(text)] * (len(ids) - added - len(inner))
    offsets = tokenizer.offsets_in(text)  # it reads another spelling than the client's
    return offsets if len(offsets) == len(ids) else [min(offset, len(text)) for offset in offsets_of(ids, tokenizer)]


class StopStrings:
    """Holds back what could be the beginning of a stop string. The stop that ends first wins, of those that end
    together the longest, so that the answer does not depend on how the text was cut into pieces."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string that matched or None)."""
        if not self._stops:
            return text, None
        self._held += text
        if (match := self._match()) is not None:
            start, end = match
            shown, stop = self._held[: end if self._include else start], self._held[start:end]
            self._held = ""
            return shown, stop
        return self._release(len(self._held) - self._possible()), None

    def flush(self) -> str:
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _match(self) -> tuple[int, int] | None:
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        return (min(found)[1], min(found)[0]) if found else None

    def _possible(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        ends = (size for size in range(longest, 0, -1) if self._starts_a_stop(self._held[-size:]))
        return next(ends, 0)

    def _starts_a_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
