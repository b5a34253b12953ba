"""How much a part of a composition counts, token by token; imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["thought", "answer"]


@dataclass(frozen=True, slots=True)
class SchedulePoint:
    """What holds from `token` on, counted in the tokens that the composition has written. `masks` None: the masks hold
    where the scale is not 0."""

    token: int
    scale: float
    masks: bool | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """How often a shift counts for one token, and whether its masks hold."""

    scale: float
    masks: bool


@dataclass(frozen=True, slots=True)
class ThoughtSpelling:
    """The thought before an answer stands between the texts `begin` (empty: the prompt has begun it) and `end`; `texts`
    has the tokens that can be parts of these, white space among them. What begins otherwise has no thought."""

    begin: str
    end: str
    texts: tuple[tuple[int, str], ...]


class AnswerBegin:
    """Finds where the answer begins behind a thought, in tokens of which more come."""

    def __init__(self, thought: ThoughtSpelling) -> None:
        self._thought = thought
        self._texts = dict(thought.texts)
        self._start_over()

    def _start_over(self) -> None:
        self._read: list[int] = []
        self._text: str = ""  # that may be the begin of a tag
        self._in_thought = not self._thought.begin
        self._found: int | None = None
        self._known_from = 0  # tokens that tell what was found

    def of(self, written: Sequence[int]) -> int | None:
        """How many of the tokens stand before the answer; None within the thought, or where one may begin."""
        size = min(len(written), len(self._read))
        if list(written[:size]) != self._read[:size]:  # guesses were taken back
            self._start_over()
        for token in written[len(self._read) :]:
            self._read.append(token)
            if self._found is None:
                self._follow(self._texts.get(token))
                self._known_from = len(self._read)
        return self._found if len(written) >= self._known_from else None

    def _follow(self, text: str | None) -> None:
        begin, end = self._thought.begin, self._thought.end
        if not self._in_thought:
            self._text = (self._text + (text or "")).lstrip()
            if text is None or not (self._text.startswith(begin) or begin.startswith(self._text)):
                self._found = 0
                return
            if not self._text.startswith(begin):
                return
            self._in_thought, text, self._text = True, self._text[len(begin) :], ""
        self._text = "" if text is None else self._text[-len(end) :] + text
        if end in self._text:
            self._found = len(self._read)


OUTSIDE = Moment(0.0, False)  # of the phase in which a shift counts


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a shift counts, and how often. `points` ascend from token 0; a scale holds up to the next point, or is drawn
    in a straight line towards it (`is_linear`). Within a `phase` tokens are counted from its begin; outside of it
    neither the shift counts nor its masks."""

    points: tuple[SchedulePoint, ...]
    is_linear: bool = False
    phase: Phase | None = None

    def at(self, token: int, answer: int | None = 0) -> Moment:
        """For the token behind `token` others that the composition has written; the answer stands behind `answer` of
        them (None: this is the thought)."""
        if self.phase is None:
            return self._at(token)
        if (self.phase == "answer") != (answer is not None):
            return OUTSIDE
        return self._at(token - (answer or 0))

    def _at(self, token: int) -> Moment:
        last = max(i for i, point in enumerate(self.points) if point.token <= token)
        point, scale = self.points[last], self.points[last].scale
        if self.is_linear and last + 1 < len(self.points):
            following = self.points[last + 1]
            scale += (following.scale - scale) * (token - point.token) / (following.token - point.token)
        return Moment(scale, scale != 0 if point.masks is None else point.masks)
