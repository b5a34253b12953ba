"""Labels of a figure's points: none over another, over a point, or over the frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# in pixels
CLEAR = 4.0  # around a mark: its edge, and air
GAP = 5.0  # from a mark to its own label
REACH = 200.0  # as far as a label may go from its point
RINGS, RAYS = 12, 24
LINED = 20.0  # labels further away than this are joined to their point by a line


@dataclass(frozen=True, slots=True)
class Box:
    """In pixels, `left` ≤ `right`, `low` ≤ `high`."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def lies_in(self, other: Box) -> bool:
        return (
            other.left <= self.left and self.right <= other.right and other.low <= self.low and self.high <= other.high
        )


Point = tuple[float, float]


def place(points: Sequence[Point], sizes: Sequence[Point], marks: Sequence[float], frame: Box) -> list[Box | None]:
    """A place for each label, nearest first; None where nothing is free within reach. All in pixels.

    Args:
        points: what is labelled.
        sizes: width and height of each label.
        marks: half the width of each point's mark.
        frame: what every label lies in.
    """
    taken = [_around(at, (2 * mark + CLEAR, 2 * mark + CLEAR)) for at, mark in zip(points, marks, strict=True)]
    places: list[Box | None] = []
    for at, size, mark in zip(points, sizes, marks, strict=True):
        found = next((box for box in _tries(at, size, mark) if _fits(box, frame, taken)), None)
        places.append(found)
        taken += [found] if found else []
    return places


def _fits(box: Box, frame: Box, taken: Sequence[Box]) -> bool:
    return box.lies_in(frame) and not any(box.meets(other) for other in taken)


def _around(centre: Point, size: Point) -> Box:
    (x, y), (width, height) = centre, size
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _tries(at: Point, size: Point, mark: float) -> Iterator[Box]:
    """Ever further away; of one distance, above to the right first."""
    for ring in range(RINGS):
        away = GAP + (REACH - GAP) * (ring / (RINGS - 1)) ** 2
        for ray in range(RAYS):
            turn = math.tau * (ray / RAYS + 1 / 8)
            across, up = math.cos(turn), math.sin(turn)
            x = at[0] + across * (mark + away) + size[0] / 2 * max(-1.0, min(1.0, 1.5 * across))
            y = at[1] + up * (mark + away) + size[1] / 2 * max(-1.0, min(1.0, 1.5 * up))
            yield _around((x, y), size)


def annotate(axes: Any, texts: Mapping[str, Point], marks: Sequence[float], fontsize: float) -> list[str]:
    """Writes a text at each of its points of the axes, which are final by then; those that found no room.

    Args:
        axes: matplotlib's, in a figure that was laid out.
        texts: text → its point, in the axes' data.
        marks: half the width of each point's mark, in points of 1/72 inch.
        fontsize: in points.
    """
    figure = axes.figure
    pixels = figure.dpi / 72
    frame = axes.get_window_extent()
    drawn = [axes.annotate(text, at, fontsize=fontsize, xytext=at) for text, at in texts.items()]
    renderer = figure.canvas.get_renderer()
    extents = [label.get_window_extent(renderer) for label in drawn]
    points: list[Point] = [tuple(axes.transData.transform(at)) for at in texts.values()]
    window = Box(frame.x0 + pixels, frame.y0 + pixels, frame.x1 - pixels, frame.y1 - pixels)
    sizes = [(extent.width + pixels, extent.height + pixels) for extent in extents]
    places = place(points, sizes, [mark * pixels for mark in marks], window)
    for label in drawn:
        label.remove()
    for (text, at), point, box in zip(texts.items(), points, places, strict=True):
        if box is not None:
            _write(axes, text, at, point, box, fontsize, pixels)
    return [text for text, box in zip(texts, places, strict=True) if box is None]


def _write(axes: Any, text: str, at: Point, point: Point, box: Box, fontsize: float, pixels: float) -> None:
    offset = ((box.left - point[0]) / pixels + 0.5, (box.low - point[1]) / pixels + 0.5)
    nearest = (
        max(box.left - point[0], point[0] - box.right, 0.0),
        max(box.low - point[1], point[1] - box.high, 0.0),
    )
    far = math.hypot(*nearest) > LINED
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#666666", "shrinkA": 0, "shrinkB": 2} if far else None
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=fontsize, va="bottom", arrowprops=line)
