"""What the experts' benchmarks share: recipes trained on a demo family, and evaluated beside its members."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from motet.evaluation.recipe import Recipe
from motet.evaluation.run import Results, evaluate
from motet.evaluation.settings import validated
from motet.experts.bundle import BUNDLE
from motet.settings import texts_of
from motet.training.run.recipe_file import read_recipe
from motet.training.run.train import train


class Lab:
    """A family of models (the demo's, or another one in its layout), and a folder for what is trained on it. What the
    folder holds already is not trained again.

    Attributes:
        seconds: of one processor core by name: reading data, training, writing. Wall time would also count what else
            the machine does.
    """

    def __init__(self, family: Path, folder: Path) -> None:
        self.family, self.folder = family.resolve(), folder.resolve()
        self._times = self.folder / "seconds.json"
        known: dict[str, float] = json.loads(self._times.read_text()) if self._times.is_file() else {}
        self.seconds = {name: spent for name, spent in known.items() if (self.folder / name / BUNDLE).is_file()}

    def train(self, name: str, recipe: str, *overrides: str) -> None:
        """Trains a packaged recipe, or a recipe's file, as the model `name`."""
        if name in self.seconds:
            return
        output = self.folder / name
        made, origin = read_recipe(recipe, [f"root={self.family}", f"output={output}", *overrides])
        started = time.process_time()
        train(made, origin, existing="restart")
        self.seconds[name] = round(time.process_time() - started, 1)
        self._times.write_text(json.dumps(self.seconds) + "\n")
        print(f"  {name}: {self.seconds[name]} s", flush=True)

    def evaluate(self, subjects: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], limit: int) -> Results:
        """Runs tasks over `subjects`, which may name the family's members, its compositions and what was trained."""
        file = self.folder / "models.yaml"
        file.write_text(yaml.safe_dump(self.operator_file(subjects), sort_keys=False), encoding="utf-8")
        content = {
            "root": str(self.family),
            "output": str(self.folder / "evaluation"),
            "api": {"models": str(file)},
            "subjects": dict(subjects),
            "tasks": list(tasks),
            "limit": limit,
        }
        return evaluate(validated(Recipe, content), self.folder)

    def kept(self, name: str, measured: Callable[[], Any]) -> Any:
        """What was measured, as JSON gives it back; measured where the folder does not hold it yet."""
        file = self.folder / f"{name}.json"
        if not self.has(name):
            text = json.dumps(measured(), indent=1) + "\n"
            file.write_text(text, encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        """Whether that was measured before."""
        return (self.folder / f"{name}.json").is_file()

    def operator_file(self, subjects: Mapping[str, Any]) -> dict[str, Any]:
        """The family's file with what was trained, less the models that no subject needs."""
        content = yaml.safe_load((self.family / "models.yaml").read_text(encoding="utf-8"))
        for model in content["models"].values():
            model["path"] = str(self.family / model["path"])
        trained = {name: {"path": str(self.folder / name), "template": "chat"} for name in self.seconds}
        named = set(texts_of(subjects))
        compositions = {name: fields for name, fields in content["compositions"].items() if name in named}
        named |= set(texts_of(compositions))
        models = {name: fields for name, fields in (content["models"] | trained).items() if name in named}
        content.pop("server", None)  # its page's examples ask models that may be none of these
        return {**content, "models": models, "compositions": compositions}
