"""Stop strings do not depend on how the text was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from motet.server.text import StopStrings

TEXT = st.text(alphabet="abc ", max_size=40)
STOPS = st.lists(st.text(alphabet="abc ", min_size=1, max_size=5), min_size=1, max_size=4)


def read(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    reader = StopStrings(stops, include=include)
    shown = ""
    for piece in pieces:
        text, stop = reader.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + reader.flush(), None


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Cuts at the first place where any stop string is complete; of those that end there, at the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, TEXT, st.data())
def test_cut_anywhere(stops: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    assert read(stops, pieces) == expected(stops, text)


@given(STOPS, TEXT)
def test_included_stop_is_shown(stops: list[str], text: str) -> None:
    before, stop = expected(stops, text)
    assert read(stops, list(text), include=True) == (before + (stop or ""), stop)


@given(STOPS, TEXT)
def test_nothing_shown_is_taken_back(stops: list[str], text: str) -> None:
    reader, shown = StopStrings(stops), ""
    for char in text:
        piece, stop = reader.push(char)
        shown += piece
        assert expected(stops, text)[0].startswith(shown)
        if stop is not None:
            return


def test_only_possible_beginnings_are_held() -> None:
    reader = StopStrings(["<end>"])
    assert [reader.push(piece)[0] for piece in ("a", "<", "b", "<e", "n", "x")] == ["a", "", "<b", "", "", "<enx"]
