"""Which distributions a step needs: whose its positions are, and which of them linked rows share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from motet.composers.plan import Plan
from motet.engines.vllm.table import Batch, Point
from motet.engines.vllm.wire import Probe, payload_size


@dataclass(frozen=True, slots=True)
class Item:
    """One distribution, and a row of a step (see `decoding.StepRow`).

    `reads[k]` is the place, among the step's positions, of the one that stream k reads. `point` None is a request that
    names no composition. `is_next`: the runner takes a token here; `is_reported`: it is drawn or scored by this engine;
    `probe`: what is reported beyond log-probs.
    """

    point: Point | None
    plan: Plan
    reads: tuple[int, ...]
    is_next: bool = False
    is_reported: bool = False
    probe: Probe | None = None

    @classmethod
    def at(cls, point: Point | None, plan: Plan, reads: Sequence[int]) -> Item:
        if point is None:
            return cls(None, plan, tuple(reads))
        return cls(point, plan, tuple(reads), point.is_next, point.is_next or point.is_probed, point.report)

    @property
    def is_idle(self) -> bool:
        """Inside a prompt that is still being read: nobody looks at it."""
        return self.point is not None and self.point.row.spec.draw is not None and not self.is_reported

    @property
    def answer(self) -> Point:
        """The position as an answer, of an item that names a composition."""
        assert self.point is not None
        return self.point

    @property
    def forced(self) -> int:
        return self.answer.forced

    @property
    def is_drawn(self) -> bool:
        return self.answer.is_drawn

    @property
    def written(self) -> list[int]:
        return self.answer.written

    @property
    def size(self) -> int:
        """How many numbers stand beside the token's log-prob."""
        return self.answer.sampling.top_logprobs if self.probe is None else payload_size(self.probe, self.plan)


def points_of(batch: Batch, rows: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> list[Point | None]:
    """Whose positions these are, None of a request that names no composition. Behind a row's last token stand its
    drafts, in order."""
    found: dict[int, list[int]] = {}
    points: list[Point | None] = []
    for index, position, token in zip(rows, positions, tokens, strict=True):
        row = batch.row(index)
        if row is None:
            points.append(None)
            continue
        drafts = found.setdefault(index, [])
        if position > row.last:
            drafts.append(token)
        points.append(Point(row, position, tuple(drafts)))
    return points


def items_of(points: Sequence[Point | None], default: Plan) -> tuple[list[Item], list[int]]:
    """The distinct distributions, and which of them each of R points gets: linked rows share one.

    Args:
        default: the plan of requests that name none.
    """
    groups = _complete_groups(points)
    items: list[Item] = []
    order: list[int] = []
    shared: dict[str, int] = {}
    for number, point in enumerate(points):
        link = None if point is None or point.drafts else point.row.spec.link
        places = None if link is None else groups.get(link.group)
        if link is None or places is None:
            order.append(len(items))
            items.append(_item(point, [number], default))
            continue
        order.append(shared.setdefault(link.group, len(items)))
        if order[-1] == len(items):  # the group's first row here: composed once, as the base's context sees it
            items.append(_item(points[places[0]], [places[view] for view in link.views], default))
    return items, order


def _item(point: Point | None, reads: Sequence[int], default: Plan) -> Item:
    """`reads`: the place of each stream's context, or the one that all streams read."""
    plan = default if point is None else point.plan
    return Item.at(point, plan, reads if len(reads) > 1 else [*reads] * len(plan.streams))


def _complete_groups(points: Sequence[Point | None]) -> dict[str, dict[int, int]]:
    """group → view → number of its position, of the groups whose contexts are all here and equally far.

    Guesses are none of theirs: vLLM pads a request of one token with some when drafts are on.
    """
    seen: dict[str, dict[int, int]] = {}
    ages: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for number, point in enumerate(points):
        if point is not None and not point.drafts and point.row.spec.link is not None:
            link = point.row.spec.link
            seen.setdefault(link.group, {})[link.view] = number
            ages.setdefault(link.group, set()).add(point.position - len(point.row.prompt))
            sizes[link.group] = link.size
    return {
        group: places
        for group, places in seen.items()
        if len(places) == sizes[group] and len(ages[group]) == 1 and min(ages[group]) >= -1
    }
