"""What models write before an answer, between the tags of their family."""

from __future__ import annotations

from dataclasses import dataclass

from motet.models.tool_calls import Part, Said, Thought


@dataclass(frozen=True)
class ThinkTags:
    """The texts before and behind a thought."""

    begin: str
    end: str

    def around(self, thought: str, answer: str) -> str:
        """A turn of the past, as the families' own templates write it."""
        return f"{self.begin}\n{thought.strip()}\n{self.end}\n\n{answer.lstrip()}"


KNOWN_TAGS = (
    ThinkTags("<think>", "</think>"),  # Qwen 3, DeepSeek R1 and what was distilled from it, GLM, SmolLM 3
    ThinkTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkTags("<seed:think>", "</seed:think>"),  # Seed OSS
    ThinkTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)


class ThoughtReader:
    """Splits a thought off an answer while it comes; white space around the tags is dropped.

    Args:
        is_open: the prompt itself has begun the thought; else it begins with the answer, or not at all.
    """

    def __init__(self, tags: ThinkTags, *, is_open: bool = False) -> None:
        self._tags = tags
        self._held = ""
        self._spaces: list[str] = []  # that came last: they decide nothing, and there may be megabytes of them
        self._place = "thought" if is_open else "before"  # before, thought, behind, answer
        self._begun = False  # the thought has shown some text

    @property
    def in_thought(self) -> bool:
        return self._place == "thought"

    def push(self, text: str) -> list[Part]:
        """What became certain with this text."""
        if text.isspace() and self._place != "answer":
            self._spaces.append(text)
            return []
        self._held += self._blank() + text
        parts: list[Part] = []
        if self._place == "before":
            self._enter()
        if self._place == "thought":
            parts += self._think()
        if self._place == "behind":
            self._held = self._held.lstrip()
            self._place = "answer" if self._held else "behind"
        if self._place == "answer" and self._held:
            parts.append(Said(self._held))
            self._held = ""
        return parts

    def flush(self) -> list[Part]:
        """What is left at the end of the answer."""
        text, self._held = self._held + self._blank(), ""
        if self._place == "thought":
            return self._thought(text.rstrip())
        return [Said(text)] if text and self._place != "behind" else []

    def _blank(self) -> str:
        text = "".join(self._spaces)
        self._spaces.clear()
        return text

    def _enter(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self._tags.begin):
            self._held, self._place = text[len(self._tags.begin) :], "thought"
        elif not self._tags.begin.startswith(text):
            self._place = "answer"

    def _think(self) -> list[Part]:
        text, end, rest = self._held.partition(self._tags.end)
        if end:
            self._held, self._place = rest, "behind"
            return self._thought(text.rstrip())
        shown = text.rstrip()[: _safe(text.rstrip(), self._tags.end)].rstrip()
        self._held = text[len(shown) :]
        return self._thought(shown)

    def _thought(self, text: str) -> list[Part]:
        if not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        return [Thought(text)] if text else []


def _safe(text: str, tag: str) -> int:
    """How many characters cannot be the beginning of the tag."""
    longest = min(len(text), len(tag) - 1)
    return len(text) - next((size for size in range(longest, 0, -1) if tag.startswith(text[-size:])), 0)
