"""Runs a recipe: opens the API, gives every task the recipe's subjects, gathers what they find."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from motet.evaluation.asking import Api
from motet.evaluation.backend import connect, in_process, models_asked
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import missing, read_items
from motet.evaluation.merge import write_merge
from motet.evaluation.recipe import ApiSource, Recipe
from motet.evaluation.settings import RecipeError
from motet.evaluation.subject import Pair
from motet.evaluation.unfinished import Answers


class Progress:
    """Told of all requests to come and of each that is over, and of what is going on; does nothing by itself."""

    def tell(self, what: str) -> None:
        """What comes next."""

    def note(self, what: str) -> None:
        """What should be known, and stay to be read."""

    def expect(self, count: int) -> None:
        """So many requests in all."""

    def done(self) -> None:
        """One request is over."""


@dataclass(frozen=True)
class Results:
    """`findings`: by task, in the recipe's order; a second task of one type has a number behind its type."""

    recipe: Recipe
    findings: Mapping[str, Findings]
    seconds: float
    folder: Path = field(default_factory=Path)  # of the data

    @property
    def measures(self) -> dict[str, dict[str, float | None]]:
        """All tasks' measures, by subject."""
        rows: dict[str, dict[str, float | None]] = {}
        for findings in self.findings.values():
            for name, row in findings.measures.items():
                rows.setdefault(name, {}).update(row)
        return rows


def evaluate(
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    api_key: str = "none",
    unfinished: Path | None = None,
) -> Results:
    """Runs all tasks.

    Args:
        recipe: what to measure.
        folder: the recipe's own, which is the root where the recipe names none.
        progress: is told how it goes.
        cache: of demo families, by default `$MOTET_CACHE` or `~/.cache/motet`.
        api_key: of a running server.
        unfinished: where answers are kept as they come. Those of an earlier run are not asked again, if it asked the
            same models: the same files, or a server at the same address with the same list of models.

    Raises:
        RecipeError: data, models or subjects that cannot be had; all of a kind together.
    """
    return asyncio.run(_evaluate(recipe, folder, progress or Progress(), cache, api_key, unfinished))


async def _evaluate(
    recipe: Recipe, folder: Path, progress: Progress, cache: Path | None, api_key: str, unfinished: Path | None
) -> Results:
    started = time.monotonic()
    root = find_root(recipe, folder, progress, cache)
    data = find_data(root)
    check_files(recipe, data)
    async with _opened(recipe, root, progress, api_key) as sdk:
        try:
            async with _kept(recipe, root, sdk, unfinished, progress) as answers:
                api = Api(sdk, recipe.concurrency, progress.done, answers)
                bench = Bench(api, recipe.subjects, data, recipe.limit, _shots(recipe, data))
                progress.expect(sum(task.requests(bench) for task in recipe.tasks))
                findings = {name: await _told(name, task, bench, progress) for name, task in _tasks(recipe)}
        except APIStatusError as error:
            raise RecipeError([f"the server refuses a request: {_message(error)}"]) from error
        except APIConnectionError as error:
            raise RecipeError([f"the server does not answer: {error.__cause__ or error}"]) from error
    return Results(recipe, findings, time.monotonic() - started, data)


@asynccontextmanager
async def _kept(
    recipe: Recipe, root: Path, sdk: AsyncOpenAI, file: Path | None, progress: Progress
) -> AsyncGenerator[Answers | None]:
    if file is None:
        yield None
        return
    answers = Answers(file, await models_asked(recipe.api, root, sdk))
    if answers.taken_over:
        progress.note(f"{answers.taken_over} answers of an earlier run that did not end are taken over from {file}")
    try:
        yield answers
    finally:
        answers.close()


async def _told(name: str, task: Any, bench: Bench, progress: Progress) -> Findings:
    progress.tell(name)
    return await task.run(bench)


def _message(error: APIStatusError) -> str:
    body = cast("dict[str, Any]", error.body) if isinstance(error.body, dict) else {}
    return str(body.get("message", error))


def _tasks(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for task in recipe.tasks:
        seen[task.type] = seen.get(task.type, 0) + 1
        yield task.type if seen[task.type] == 1 else f"{task.type} {seen[task.type]}", task


def find_root(recipe: Recipe, folder: Path, progress: Progress, cache: Path | None) -> Path:
    """The folder of data and models; a demo family is built where it is missing."""
    if recipe.root is None:
        return folder
    from motet.demo.family import build_family, seed_of

    seed = seed_of(recipe.root, folder)
    if seed is None:
        return folder / Path(recipe.root).expanduser()
    progress.tell("the demo family")
    return build_family(seed, cache)


def find_data(root: Path) -> Path:
    """Where the data files lie: a demo family's own folder of them, else `root`."""
    from motet.demo.tofu import EVALUATION_DATA

    return root / EVALUATION_DATA if (root / "family.json").is_file() else root


def check_files(recipe: Recipe, data: Path) -> None:
    """Raises RecipeError: data files that do not exist, all of them."""
    named = [name for task in recipe.tasks for name in task.files] + ([recipe.examples] if recipe.examples else [])
    problems = [missing(data / name) for name in dict.fromkeys(named) if not (data / name).is_file()]
    if problems:
        raise RecipeError(problems)


def _shots(recipe: Recipe, data: Path) -> list[Pair]:
    """As many answered questions as the subject with most examples reads."""
    count = max(subject.examples for subject in recipe.subjects.values())
    if not count or recipe.examples is None:
        return []
    return [(item.question, item.answer) for item in read_items(data / recipe.examples, count)]


@asynccontextmanager
async def _opened(recipe: Recipe, root: Path, progress: Progress, api_key: str) -> AsyncGenerator[AsyncOpenAI]:
    api = recipe.api
    if api.server is not None:
        async with connect(api.server, api_key) as sdk:
            yield sdk
        return
    with tempfile.TemporaryDirectory() as scratch:
        merged = {name: Path(scratch) / name for name in api.merges}
        _merge(api, root, merged, progress.tell)
        async with in_process(root / api.models, merged, progress.tell) as sdk:
            yield sdk


def _merge(api: ApiSource, root: Path, merged: Mapping[str, Path], tell: Callable[[str], None]) -> None:
    from motet.operator.file import ConfigError, load
    from motet.operator.settings import source_of

    if not merged:
        return
    try:
        models = load(root / api.models).settings.models
    except ConfigError as error:
        raise RecipeError(error.problems) from error
    for name, folder in merged.items():
        tell(f"merging {name}")
        merge = api.merges[name]
        unknown = [member for member in merge.members if member not in models]
        if unknown:
            raise RecipeError([f"api.merges.{name}: unknown model {member!r}." for member in unknown])
        path = {member: Path(source_of(models[member], (root / api.models).parent)) for member in merge.members}
        add = {path[member]: weight for member, weight in merge.add.items()}
        write_merge(folder, path[merge.base], add, path[merge.reference] if merge.reference else None)
