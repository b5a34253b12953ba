"""What the user should know of a run before it trains: nothing here is wrong, but not all of it will be meant."""

from __future__ import annotations

from collections.abc import Iterator

from motet.settings import texts_of
from motet.training.recipe import Recipe
from motet.training.run.preparation import Preparation

FEW_STEPS = 20  # below which a learning rate must be well chosen for anything to be learnt
MANY_EPOCHS = 30  # above which a small dataset is learnt by heart


def notes(prepared: Preparation) -> Iterator[str]:
    """A line on every dataset, then what was adapted to the data, then what may not be meant."""
    recipe, source = prepared.recipe, prepared.source
    for name, rows in source.sources.items():
        dataset = prepared.datasets[name]
        learnt = f"{dataset.num_counted:,} of {dataset.num_tokens:,} tokens learnt"
        length = f"{_steps(prepared.steps)} of up to {_rows(rows.per_step, recipe)}, {rows.epochs(prepared.steps):.3g}"
        yield f"{name}: {len(dataset):,} records, {learnt}; {length} epochs"
    yield from (f"note: {note}" for note in (*_adapted(prepared), *_doubtful(prepared), *_unnamed(recipe)))


def _rows(count: int, recipe: Recipe) -> str:
    what = "row" if recipe.batch.packing == "none" else "packed row"
    return f"{count} {what}{'s' * (count != 1)}"


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count != 1)}"


def _adapted(prepared: Preparation) -> Iterator[str]:
    recipe, source = prepared.recipe, prepared.source
    for name, rows in source.sources.items():
        asked = recipe.data[name].rows or recipe.batch.rows
        if rows.per_step < asked:
            filled = _rows(rows.num_rows, recipe)
            yield f"batch.rows: {asked}, but data.{name} fills {filled}; a step reads {rows.per_step}"
    if (micros := source.micro_batches(0)) < recipe.batch.accumulate:
        yield f"batch.accumulate: {recipe.batch.accumulate}, but a step has rows for {micros} micro-batches"
    warmup = recipe.schedule.warmup
    if warmup is not None and (cut := recipe.schedule.warmup_steps(prepared.steps)) < warmup:
        yield f"schedule.warmup: {warmup} steps are more than half of {prepared.steps}; warming up over {cut}"


def _doubtful(prepared: Preparation) -> Iterator[str]:
    recipe, leading = prepared.recipe, prepared.source.sources[prepared.source.leading]
    epochs = leading.epochs(prepared.steps)
    if prepared.steps < FEW_STEPS:
        yield f"{_steps(prepared.steps)} in all, which is few; {_more(prepared)}"
    if epochs > MANY_EPOCHS:
        yield (
            f"data.{prepared.source.leading} is read {epochs:.0f} times: so small data is learnt by heart; fewer "
            "schedule.steps, more data, or a data.validation that tells when it begins"
        )
    if recipe.schedule.steps is not None and epochs < 1:
        yield f"data.{prepared.source.leading}: only {epochs:.0%} of it is read in {_steps(prepared.steps)}"


def _more(prepared: Preparation) -> str:
    """Overrides under which the run has some steps more."""
    recipe, documents = prepared.recipe, len(prepared.datasets[prepared.source.leading])
    smaller = max(1, min(4, documents // 4))
    unpacked = "batch.packing=none " if recipe.batch.packing != "none" else ""
    if recipe.schedule.epochs is None:
        return "raise schedule.steps"
    epochs = max(3, -(-2 * FEW_STEPS * smaller // documents))
    steps = -(-epochs * documents // smaller)
    return f"{unpacked}batch.rows={smaller} schedule.epochs={epochs} makes {steps:,}"


def _unnamed(recipe: Recipe) -> Iterator[str]:
    """Members that are loaded for nothing."""
    named = set(texts_of(recipe.model_dump(include={"through", "objective"})))
    for name in sorted(recipe.members.keys() - named):
        yield f"members.{name}: nothing names it, yet it is loaded; name it in through or objective, or leave it out"
