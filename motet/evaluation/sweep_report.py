"""What is said of a sweep: its table, its files, and a scatter that is readable without colour.

Colours are Okabe and Ito's (2008), told apart by the colour-blind; markers and labels say the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console

from motet.evaluation.bench import Row
from motet.evaluation.labels import annotate
from motet.evaluation.report import as_json, columns, markdown, tables, write_results
from motet.evaluation.sweep import Swept

BLUE, ORANGE, GREEN, BLACK, GREY = "#0072B2", "#E69F00", "#009E73", "#000000", "#999999"
LEGEND = 60  # characters in a line of it
# kind of point → (what the legend says, colour, marker, size)
STYLES = {
    "other": ("point of the grid", GREY, "o", 36),
    "front": ("Pareto front", BLUE, "s", 52),
    "chosen": ("chosen", ORANGE, "*", 220),
    "given": ("not varied", GREEN, "^", 60),
}


def marks(swept: Swept) -> dict[str, str]:
    """What is said of each point beside its name."""
    return {
        name: ", ".join([*["Pareto"] * (name in swept.front), *["chosen"] * (name == swept.chosen)])
        for name in swept.rows
    }


def _marked(swept: Swept) -> dict[str, Row]:
    said = marks(swept)
    return {f"{name} ({said[name]})" if said[name] else name: row for name, row in swept.rows.items()}


def print_sweep(console: Console, swept: Swept) -> None:
    """The points with the front's measures, and the choice."""
    measured = [axis.measure for axis in swept.sweep.front]
    measured += [swept.sweep.select.measure] if swept.sweep.select else []
    wanted: list[str] = list(dict.fromkeys(measured))
    short = {name: {measure: row.get(measure) for measure in wanted} for name, row in _marked(swept).items()}
    for part in tables(f"{swept.results.recipe.title}: sweep", short, console.width, "point"):
        console.print(part)
    if swept.choice is not None:
        console.print(f"chosen: {swept.chosen or 'none'} ({swept.choice})", highlight=False, markup=False)


def write_sweep(swept: Swept) -> list[Path]:
    """As `write_results`, and `sweep.json`, `sweep.csv`, `sweep.md`, `sweep.png` and `sweep.svg`; their paths."""
    files = write_results(swept.results)
    folder = swept.results.recipe.output
    said = marks(swept)
    about = {
        "chosen": swept.chosen,
        "choice": swept.choice,
        "front": sorted(swept.front),
        "points": swept.points,
        **as_json(swept.results),
    }
    (folder / "sweep.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    chosen = "" if swept.choice is None else f"\nChosen: {swept.chosen or 'none'} ({swept.choice}).\n"
    (folder / "sweep.md").write_text(markdown(_marked(swept), "point") + chosen, encoding="utf-8")
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = columns(swept.rows)
        writer.writerow(["point", *swept.sweep.over, "mark", *names])
        for name, row in swept.rows.items():
            values = [swept.points.get(name, {}).get(field, "") for field in swept.sweep.over]
            writer.writerow([name, *values, said[name], *(row.get(measure) for measure in names)])
    written = [folder / f"sweep.{kind}" for kind in ("json", "md", "csv", "png", "svg")]
    draw(swept, written[-2:])
    return [*files, *written]


def draw(swept: Swept, files: Sequence[Path]) -> None:
    """Draws the first two measures of the front against each other and writes one file per path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure: Any
    axes: Any
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    try:
        x, y = swept.sweep.front[:2]
        kinds = _kinds(swept)
        for kind, names in kinds.items():
            _scatter(swept, axes, kind, names)
        for name, axis in zip("xy", (x, y), strict=True):
            better = "more" if axis.better == "max" else "less"
            getattr(axes, f"set_{name}label")(f"{axis.measure} ({better} is better)")
            getattr(axes, f"set_{name}scale")("log" if axis.log else "linear")
        axes.margins(0.12)
        axes.set_title(swept.results.recipe.title)
        axes.grid(visible=True, alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, title=_key(swept), title_fontsize=8)
        figure.draw_without_rendering()  # lays it out; labels are placed in what there is then
        _label(swept, axes, kinds)
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    finally:
        pyplot.close(figure)


def _key(swept: Swept) -> str:
    """What the labels say."""
    return f"labels of the grid's points: {', '.join(swept.sweep.over)}"


def _kinds(swept: Swept) -> dict[str, list[str]]:
    """The points that can be drawn, by what they are."""
    kinds: dict[str, list[str]] = {kind: [] for kind in STYLES}
    for name, row in swept.rows.items():
        if any(row.get(axis.measure) is None for axis in swept.sweep.front[:2]):
            continue
        if name not in swept.points:
            kinds["given"].append(name)
        elif name == swept.chosen:
            kinds["chosen"].append(name)
        else:
            kinds["front" if name in swept.front else "other"].append(name)
    return {kind: names for kind, names in kinds.items() if names}


def _scatter(swept: Swept, axes: Any, kind: str, names: Sequence[str]) -> None:
    said, colour, marker, size = STYLES[kind]
    said = fill(f"{said}: {swept.choice}", LEGEND) if kind == "chosen" else said
    at = [_at(swept, name) for name in names]
    axes.scatter(*zip(*at, strict=True), c=colour, marker=marker, s=size, label=said, edgecolors=BLACK, linewidths=0.5)


def _at(swept: Swept, name: str) -> tuple[Any, Any]:
    x, y = (axis.measure for axis in swept.sweep.front[:2])
    return swept.rows[name][x], swept.rows[name][y]


def _label(swept: Swept, axes: Any, kinds: dict[str, list[str]]) -> None:
    """The chosen point and the front first: where it is narrow, they have their labels near."""
    named = [(kind, name) for kind in ("chosen", "front", "given", "other") for name in kinds.get(kind, [])]
    texts = {_text(swept, name): _at(swept, name) for _, name in named}
    left_out = annotate(axes, texts, [STYLES[kind][3] ** 0.5 / 2 for kind, _ in named], fontsize=7)
    if left_out:
        axes.set_title(f"{len(left_out)} labels found no room: see sweep.csv", fontsize=7, loc="right")


def _text(swept: Swept, name: str) -> str:
    """A point by its values, others by their names."""
    return ", ".join(_value(value) for value in swept.points[name].values()) if name in swept.points else name


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
