"""Every YAML of the repository is loaded, and every training recipe is run dry on a tiny demo family."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from motet.demo.family import build_family
from motet.demo.recipe import TINY
from motet.training.run.dry_run import dry_run
from motet.training.run.preparation import prepare
from motet.training.run.recipe_file import packaged_recipes, read_recipe
from motet.training.run.result import card_problems

ROOT = Path(__file__).parent.parent.parent
HIDDEN = {".venv", ".venv-vllm", ".git", ".hypothesis"}
FILES = sorted(
    file.relative_to(ROOT)
    for file in ROOT.rglob("*.y*ml")
    if not HIDDEN & {*file.relative_to(ROOT).parts} and "build" not in file.relative_to(ROOT).parts
)
TRAINING = [file for file in FILES if file.parts[:3] == ("motet", "training", "recipes")]
# what they grow from or compose is no member of the family: another recipe's result
INSTEAD = {
    "divergence-with": ["model.path=small"],
    "divergence-baked": ["members.without.path=small", "members.with.path=small"],
    "unlearned-baked": ["members.assistant.path=forget-assistant"],
}
PUBLISHED = (
    "sft dpo kto spin distill assistant counterfactual npo ga ga_gd ga_kl idk spul gate router gedi temperature_head "
    "similarity_head"
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(0, tmp_path_factory.mktemp("families"), TINY)


def test_the_glob_finds_them() -> None:
    assert {file.stem for file in TRAINING} == set(packaged_recipes())
    assert len(FILES) > len(TRAINING) > 20


@pytest.mark.parametrize("file", FILES, ids=str)
def test_it_is_yaml_and_begins_with_what_it_is(file: Path) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.startswith("#")
    assert list(yaml.safe_load_all(text))


@pytest.mark.parametrize("file", TRAINING, ids=lambda file: file.stem)
def test_a_recipe_states_its_own_command_and_runs_dry(file: Path, family: Path, tmp_path: Path) -> None:
    command = (ROOT / file).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split()
    assert command == ["motet", "train", file.stem, f"output=out/{file.stem}"]
    # the tiny family's vocabulary is small, so its texts are long
    changes = [f"root={family}", f"output={tmp_path / 'out'}", "batch.max_length=128", *INSTEAD.get(file.stem, [])]
    recipe, folder = read_recipe(file.stem, changes)
    assert not card_problems(recipe)
    result = dry_run(prepare(recipe, folder))
    assert result.trained > 0
    assert result.memory.total > 0
    assert not (tmp_path / "out").exists()


def test_objectives_have_recipes() -> None:
    """Those that were published with one keep it; a further one may have one."""
    named = {yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["objective"]["type"] for file in TRAINING}
    assert named >= set(PUBLISHED.split())
