"""Reads the calls of tools out of an answer while it comes, in every format of `tool_formats`."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

from motet.models.tool_formats import ToolFormat

KEYS = ("arguments", "parameters")  # models write now one and now the other, whatever their template shows
SHORT_ID = 9
ALPHANUMERIC = string.ascii_letters + string.digits

Reading = Generator[None, None, bool]  # waits for more text; whether what was looked for is there
Finding = Generator[None, None, str | None]


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the thought before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call `index` of the answer begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of call `index`, JSON as the model wrote it."""

    index: int
    text: str


Part = Said | Thought | CallBegin | CallArguments


def call_id(*, short: bool) -> str:
    """A new call's id."""
    return "".join(secrets.choice(ALPHANUMERIC) for _ in range(SHORT_ID)) if short else f"call_{secrets.token_hex(12)}"


class CallReader:
    """Splits an answer into text and calls. A call begins as soon as its name and the beginning of its arguments are
    there, and whatever turns out to be none stays text. White space between text and a call belongs to neither.

    Args:
        names: the tools that may be called; a call that nothing marks is one only where it names one of them.
        must_call: the answer is calls and nothing else.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, must_call: bool = False) -> None:
        self._form = form
        self._names = names
        self._must_call = must_call
        self._held = ""  # text that is not decided
        self._spaces: list[str] = []  # that came last: they decide nothing, and there may be megabytes of them
        self._at = 0  # how much of it was read
        self._blank = ""  # white space that belongs to the text where more text follows
        self._calls = 0
        self._ended = self._is_text = False
        self._is_cut = False  # the answer ended where something stopped it
        self._is_short = False  # what was read could have gone on as a call
        self._is_named = False  # and names a function already
        self.is_open = False  # the last call's arguments are not whole
        self._parts: list[Part] = []
        self._reading = self._answer()

    def push(self, text: str) -> list[Part]:
        """What became certain with this text."""
        if text.isspace():
            self._spaces.append(text)
            return []
        self._take(text)
        return self._advanced()

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        """What is left at the end of the answer. Where that was cut, what has begun as a call is no text."""
        self._ended, self._is_cut = True, is_cut
        self._take("")
        parts = self._advanced()
        return parts if self._calls or not self._blank else [*parts, Said(self._blank)]

    def _take(self, text: str) -> None:
        self._held += "".join(self._spaces) + text
        self._spaces.clear()

    def _advanced(self) -> list[Part]:
        next(self._reading, None)
        parts, self._parts = self._parts, []
        return parts

    def _answer(self) -> Generator[None, None, None]:
        while (yield from self._reach_call()):
            self._at = 0
            self._is_short = self._is_named = False
            if (yield from self._section()):
                continue
            if self._is_call_cut():
                self._held = self._blank = ""
                return
            self._is_text = self._form.is_bare
            self._say(1)

    def _is_call_cut(self) -> bool:
        """Whether what is held, and is no call, would have become one."""
        tag = self._form.tag
        is_marked = self._is_named or not self._form.is_bare or (bool(tag) and self._held.lstrip().startswith(tag))
        return self._is_cut and (self._must_call or (self._is_short and is_marked))

    def _reach_call(self) -> Reading:
        """Whether what is held begins where a call can begin; the text before it is said."""
        while True:
            begin, is_certain = self._begin()
            if self._is_cut and not is_certain and (self._must_call or self._calls):
                self._held, self._blank = self._held[:begin], ""  # a mark that was begun
            self._say(len(self._held) if self._ended and not is_certain else begin)
            if is_certain or self._ended:
                return is_certain
            yield

    def _begin(self) -> tuple[int, bool]:
        """(characters that are text, whether a call begins behind them); what follows may become one."""
        if not self._form.is_bare:
            return _find(self._held, (self._form.section + self._form.opens).split()[0])
        if self._is_text:
            return len(self._held), False
        text = self._held.lstrip()
        starts = ("{", self._form.tag) if self._form.tag else ("{",)
        if text.startswith(starts):
            return 0, True
        self._is_text = not any(start.startswith(text) for start in starts)
        return (len(self._held) if self._is_text else 0), False

    def _section(self) -> Reading:
        """Reads calls until something else comes. False: there is no call at all."""
        if not (yield from self._words(self._form.section, optional=self._form.tag)):
            return False
        is_any = False
        while (yield from self._call()):
            is_any = True
            self._drop()
            yield from self._close(self._form.closes)
            yield from self._words(self._form.between.strip())
            yield from self._space()
            if self._form.opens or self._held[self._at : self._at + 1] != "{":
                break
        if is_any:
            yield from self._close(self._form.ends)
            yield from self._space()
            self._drop()
            self._is_text = self._form.is_bare
        return is_any

    def _call(self) -> Reading:
        if not (yield from self._words(self._form.opens)):
            return False
        return (yield from self._named() if self._form.separator else self._object())

    def _named(self) -> Reading:
        """The bare name, the separator, the arguments."""
        yield from self._space()
        while (end := self._held.find(self._form.separator, self._at)) < 0:
            has_space = any(map(str.isspace, self._held[self._at :]))
            if self._ended or has_space:
                self._is_short = not has_space
                return False
            yield
        name = self._held[self._at : end]
        if not name or any(map(str.isspace, name)):
            return False
        self._at = end
        yield from self._words(self._form.separator)
        self._begin_call(name)
        self.is_open = not (yield from self._arguments(self._argue))
        return True

    def _object(self) -> Reading:
        """A JSON object with a name and arguments, in any order."""
        name: str | None = None
        early: list[str] = []  # arguments before the name
        begun = False
        if not (yield from self._words("{")):
            return False
        while (key := (yield from self._string())) is not None and (yield from self._words(":")):
            if key == "name" and not begun:
                name = yield from self._string()
                if name is None or not self._is_callable(name):
                    return False
                self._is_named = True
            elif key in KEYS and not begun:
                begun = name is not None and self._begin_call(name)
                whole = yield from self._arguments(self._argue if begun else early.append)
                self.is_open = begun and not whole
                if not whole:
                    break
            elif not (yield from self._value()):
                break
            if early and name is not None and not begun:
                begun = self._begin_call(name)
                self._argue("".join(early))
            if not (yield from self._words(",")):
                break
        closed = yield from self._words("}")
        if closed and name is not None and not begun and not self._form.is_bare:
            begun = self._begin_call(name)
            self._argue("{}")
        return begun

    def _is_callable(self, name: str) -> bool:
        return name in self._names or not self._form.is_bare

    def _arguments(self, out: Callable[[str], object]) -> Reading:
        """Passes the arguments on, as they come where they are an object."""
        yield from self._space()
        if self._held[self._at : self._at + 1] == "{":
            return (yield from self._value(out))
        begin = self._at
        whole = yield from self._value()
        out(_as_object(self._held[begin : self._at]))
        return whole

    def _value(self, out: Callable[[str], object] = lambda _: None) -> Reading:
        """Any JSON value, passed on as it comes; it is not judged."""
        yield from self._space()
        depth, quoted, escaped, begin = 0, False, False, self._at
        while True:
            for place in range(self._at, len(self._held)):
                sign = self._held[place]
                if not quoted and depth == 0 and (sign in ",}]" or sign.isspace()) and place > begin:
                    return self._passed(out, place)
                if quoted:
                    quoted, escaped = escaped or sign != '"', sign == "\\" and not escaped
                else:
                    quoted, depth = sign == '"', depth + (sign in "{[") - (sign in "}]")
                if not quoted and depth <= 0 and sign in '"}]':
                    return self._passed(out, place + 1)
            self._passed(out, len(self._held))
            if self._ended:
                self._is_short = True
                return False
            yield

    def _passed(self, out: Callable[[str], object], end: int) -> bool:
        if end > self._at:
            out(self._held[self._at : end])
        self._at = end
        return True

    def _string(self) -> Finding:
        """A JSON string's own text; None where there is none."""
        yield from self._space()
        begin = self._at
        self._is_short = begin == len(self._held)
        if self._held[begin : begin + 1] != '"' or not (yield from self._value()):
            return None
        try:
            return str(json.loads(self._held[begin : self._at]))
        except ValueError:
            return None

    def _words(self, words: str, *, optional: str = "") -> Reading:
        """Reads past the words, with whatever white space between them; none of them where one is missing."""
        before = self._at
        for word in [*([optional] if optional else []), *words.split()]:
            yield from self._space()
            while not self._held.startswith(word, self._at):
                is_short = word.startswith(self._held[self._at :])
                if self._ended or not is_short:
                    if word == optional and not (is_short and self._at < len(self._held)):
                        break
                    self._is_short = is_short
                    self._at = before
                    return False
                yield
            else:
                self._at += len(word)
        return True

    def _close(self, word: str) -> Generator[None, None, None]:
        """Reads past what closes a call, also where the answer ends in the middle of it."""
        if (
            not (yield from self._words(word))
            and self._ended
            and word.strip().startswith(self._held[self._at :].strip())
        ):
            self._at = len(self._held)

    def _space(self) -> Generator[None, None, None]:
        while True:
            rest = self._held[self._at :]
            self._at += len(rest) - len(rest.lstrip())
            if self._at < len(self._held) or self._ended:
                return
            yield

    def _begin_call(self, name: str) -> bool:
        self._parts.append(CallBegin(self._calls, call_id(short=self._form.short_ids), name))
        self._calls += 1
        self._blank = ""
        return True

    def _argue(self, text: str) -> None:
        self._parts.append(CallArguments(self._calls - 1, text))

    def _say(self, count: int) -> None:
        """So many characters of what is held are text."""
        text, self._held = self._blank + self._held[:count], self._held[count:]
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            self._parts.append(Said(shown))

    def _drop(self) -> None:
        """What was read is none of the text."""
        self._held, self._at = self._held[self._at :], 0


def _find(text: str, mark: str) -> tuple[int, bool]:
    """(where the mark stands or may come to stand, whether it does)"""
    if (where := text.find(mark)) >= 0:
        return where, True
    longest = min(len(text), len(mark) - 1)
    return len(text) - next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0), False


def _as_object(raw: str) -> str:
    """Arguments that are no object: some models write an object's text as a string, or null for none."""
    try:
        value: Any = json.loads(raw)
    except ValueError:
        return raw
    return "{}" if value is None else value if isinstance(value, str) else raw
