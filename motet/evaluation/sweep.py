"""A grid over a composition's fields: every point is a subject of its own, then Pareto front and choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.evaluation.bench import Row
from motet.evaluation.measures.statistics import pareto_front
from motet.evaluation.recipe import Recipe, Select, Sweep, label, varied
from motet.evaluation.report import columns
from motet.evaluation.run import Progress, Results, evaluate
from motet.evaluation.settings import RecipeError
from motet.settings import nearest


@dataclass(frozen=True)
class Swept:
    """`points`: each point's name → its values. `front` and `chosen` are names of points."""

    results: Results
    sweep: Sweep
    points: Mapping[str, Mapping[str, Any]]
    front: frozenset[str]
    chosen: str | None

    @property
    def choice(self) -> str | None:
        """Why the chosen point is chosen, and what that has to do with the front; None without a rule."""
        select, axes = self.sweep.select, [axis.measure for axis in self.sweep.front]
        if select is None:
            return None
        if self.chosen is None:
            return f"no point's {select.measure!r} {_reaches(select)}"
        said = f"{_why(select)} of the grid" if select.rule == "best" else _why(select)
        if self.chosen in self.front:
            return said
        reason = "is not an axis of the front" if select.measure not in axes else "is only one axis of the front"
        return f"{said}; not on the Pareto front: {select.measure!r} {reason}"

    @property
    def rows(self) -> dict[str, Row]:
        """The measures of every point, of the other subjects too."""
        return dict(self.results.measures)


def evaluate_sweep(
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    api_key: str = "none",
    unfinished: Path | None = None,
) -> Swept:
    """Runs the recipe's tasks once over its subjects with the swept one replaced by one per point; arguments as of
    `evaluate`.

    Raises:
        RecipeError: no sweep, fields that cannot be set, measures that no task gives; and as `evaluate`.
    """
    sweep = recipe.sweep
    if sweep is None:
        raise RecipeError(["sweep: required: what is varied, `motet eval RECIPE` runs a recipe without it."])
    points = {label(sweep.subject, point): point for point in sweep.points()}
    whole = expanded(recipe, sweep, points)
    results = evaluate(whole, folder, progress, cache=cache, api_key=api_key, unfinished=unfinished)
    _check_measures(sweep, results)
    rows = {name: results.measures[name] for name in points}
    return Swept(results, sweep, points, front_of(sweep, rows), chosen_of(sweep.select, rows))


def _why(select: Select) -> str:
    if select.rule == "first":
        return f"the first point whose {select.measure!r} {_reaches(select)}"
    return f"the {'highest' if select.better == 'max' else 'lowest'} {select.measure!r}"


def _reaches(select: Select) -> str:
    return f"reaches {select.at_least:g}" if select.rule == "first" else "is known"


def expanded(recipe: Recipe, sweep: Sweep, points: Mapping[str, dict[str, Any]]) -> Recipe:
    """The recipe with one subject per point in the place of the swept one, the others first."""
    subjects = {name: subject for name, subject in recipe.subjects.items() if name != sweep.subject}
    try:
        subjects |= {name: varied(recipe.subjects[sweep.subject], point) for name, point in points.items()}
    except ValueError as error:
        raise RecipeError([f"sweep.over: {error}."]) from error
    return recipe.model_copy(update={"subjects": subjects})


def _check_measures(sweep: Sweep, results: Results) -> None:
    known = columns(results.measures)
    wanted = [axis.measure for axis in sweep.front] + ([sweep.select.measure] if sweep.select else [])
    problems = [
        f"sweep: no task measures {name!r}.{nearest(name, known)} Measured: {', '.join(known)}."
        for name in wanted
        if name not in known
    ]
    if problems:
        raise RecipeError(problems)


def front_of(sweep: Sweep, rows: Mapping[str, Row]) -> frozenset[str]:
    """Points that no other beats in all measures of the front; points that lack one of them are left out."""
    whole = {
        name: [_upward(row[axis.measure], axis.better) for axis in sweep.front]
        for name, row in rows.items()
        if all(row.get(axis.measure) is not None for axis in sweep.front)
    }
    return frozenset(name for name, best in zip(whole, pareto_front(list(whole.values())), strict=True) if best)


def _upward(value: float | None, better: str) -> float:
    assert value is not None
    return value if better == "max" else -value


def chosen_of(select: Select | None, rows: Mapping[str, Row]) -> str | None:
    """The point that the rule chooses: the best one (the first of equals), or the first that reaches the level; None
    without a rule or where no point reaches it."""
    if select is None:
        return None
    values = {name: value for name, row in rows.items() if (value := row.get(select.measure)) is not None}
    if select.rule == "first":
        return next((name for name, value in values.items() if value >= select.at_least), None)
    return max(values, key=lambda name: _upward(values[name], select.better), default=None)
