"""A thought is split off the answer, however its text is cut."""

from __future__ import annotations

import pytest

from motet.models.thoughts import ThinkTags, ThoughtReader
from motet.models.tool_calls import Part, Said, Thought

TAGS = ThinkTags("<think>", "</think>")


def read(pieces: list[str], *, is_open: bool) -> tuple[str, str]:
    """(thought, answer)"""
    reader = ThoughtReader(TAGS, is_open=is_open)
    parts: list[Part] = [part for piece in pieces for part in reader.push(piece)] + reader.flush()
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    return thought, "".join(part.text for part in parts if isinstance(part, Said))


@pytest.mark.parametrize(
    ("text", "is_open", "thought", "answer"),
    [
        ("<think>\nA < b.\n\nSo.\n</think>\n\nYes. <think>", False, "A < b.\n\nSo.", "Yes. <think>"),
        ("\n<think>Hm</think>Yes.", False, "Hm", "Yes."),
        ("\nHm.\n</think>\n\nYes.\n", True, "Hm.", "Yes.\n"),
        ("</think>Yes.", True, "", "Yes."),
        ("Yes, </think> is a tag.", False, "", "Yes, </think> is a tag."),
        (" <thin ice", False, "", " <thin ice"),
        ("<think>Never ends </thin", False, "Never ends </thin", ""),
        ("Never ends", True, "Never ends", ""),
        ("<think></think>\n", False, "", ""),
        ("<thi", False, "", "<thi"),
        ("", False, "", ""),
    ],
)
def test_in_all_cuttings(text: str, is_open: bool, thought: str, answer: str) -> None:
    for pieces in ([text], list(text), *([text[:n], text[n:]] for n in range(1, len(text)))):
        assert read(pieces, is_open=is_open) == (thought, answer)


def test_spaces_without_end_are_not_read_again() -> None:
    """An answer may be megabytes of them: what was held was looked through for each token."""
    reader = ThoughtReader(TAGS, is_open=True)
    for first in ("Hm", " "):
        reader.push(first)
    held = reader._held  # pyright: ignore[reportPrivateUsage]
    for _ in range(3):
        assert not reader.push(" \n")
    assert reader._held is held  # pyright: ignore[reportPrivateUsage]
