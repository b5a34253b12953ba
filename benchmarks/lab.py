"""What the experts' benchmarks share: recipes trained on a demo family, and evaluated beside its members."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from motet.evaluation.recipe import Recipe
from motet.evaluation.run import Results, evaluate
from motet.evaluation.settings import validated
from motet.training.run.recipe_file import read_recipe
from motet.training.run.train import train


class Lab:
    """A demo family, and a folder for what is trained on it.

    Attributes:
        seconds: of one processor core by name: reading data, training, writing. Wall time would also count what else
            the machine does.
    """

    def __init__(self, family: Path, folder: Path) -> None:
        self.family, self.folder = family.resolve(), folder.resolve()
        self.seconds: dict[str, float] = {}

    def train(self, name: str, recipe: str, *overrides: str) -> None:
        """Trains a packaged recipe as the model `name`."""
        output = self.folder / name
        made, origin = read_recipe(recipe, [f"root={self.family}", f"output={output}", *overrides])
        started = time.process_time()
        train(made, origin, existing="restart")
        self.seconds[name] = round(time.process_time() - started, 1)
        print(f"  {name}: {self.seconds[name]} s", flush=True)

    def evaluate(self, subjects: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], limit: int) -> Results:
        """Runs tasks over `subjects`, which may name the family's members, its compositions and what was trained."""
        file = self.folder / "models.yaml"
        file.write_text(yaml.safe_dump(self._operator_file(), sort_keys=False), encoding="utf-8")
        content = {
            "root": str(self.family),
            "output": str(self.folder / "evaluation"),
            "api": {"models": str(file)},
            "subjects": dict(subjects),
            "tasks": list(tasks),
            "limit": limit,
        }
        return evaluate(validated(Recipe, content), self.folder)

    def _operator_file(self) -> dict[str, Any]:
        content = yaml.safe_load((self.family / "models.yaml").read_text(encoding="utf-8"))
        for model in content["models"].values():
            model["path"] = str(self.family / model["path"])
        trained = {name: {"path": str(self.folder / name), "template": "chat"} for name in self.seconds}
        return {"models": content["models"] | trained, "compositions": content["compositions"]}
