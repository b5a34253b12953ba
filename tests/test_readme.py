"""The README tells the truth where a machine can check it: its tree, its examples, its strategies."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import yaml

from motet.composers.spec import parse_composition, strategy_names
from motet.operator.settings import Settings
from motet.server.schemas import ChatCompletionRequest
from motet.training.objectives import OBJECTIVES
from motet.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_tree_names_every_folder() -> None:
    tree = README.split("```\nmotet/\n")[1].split("```")[0]
    path = ["motet"]
    named: set[str] = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.split()[0].rstrip("/")]
        named.add("/".join(path))
    packages = {file.parent for file in (ROOT / "motet").rglob("*.py")} - {ROOT / "motet"}
    folders = {str(folder.relative_to(ROOT)) for folder in packages}
    assert named == folders


def test_the_strategies_are_those_there_are() -> None:
    table = README.split("## Strategies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows[1:]) == sorted(strategy_names())  # the first is the head


def test_python_examples_compile_and_name_real_fields() -> None:
    for block in blocks("python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "extra_body":
                assert parse_composition(ast.literal_eval(node.value)["composition"])


def test_the_operator_file_and_the_recipe_are_valid() -> None:
    recipes = [content for block in blocks("yaml") if "objective" in (content := yaml.safe_load(block))]
    files = [content for block in blocks("yaml") if "models" in (content := yaml.safe_load(block))]
    assert len(recipes) + len(files) == len(blocks("yaml"))
    for content in recipes:
        Recipe.model_validate(content)
    for content in files:
        for composition in Settings.model_validate(content).compositions.values():
            parse_composition(composition)


def test_the_objectives_are_those_there_are() -> None:
    table = README.split("| `objective` |")[1].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    assert sorted(named) == sorted(OBJECTIVES)


def test_curl_examples_are_requests() -> None:
    bodies = [body for block in blocks("bash") for body in re.findall(r"-d '(.*?)'", block, re.DOTALL)]
    assert bodies
    for body in bodies:
        ChatCompletionRequest.model_validate(json.loads(body))


def row(start: str) -> str:
    return next(line for line in README.splitlines() if line.startswith(f"| {start}"))


def test_the_demo_figures_are_those_of_the_results() -> None:
    boards = [json.loads(file.read_text())["scoreboard"] for file in sorted(RESULTS.glob("demo-seed*.json"))]
    assert [board["seed"] for board in boards] == [0, 1, 2]
    closed = [f"{100 * board['gap_closed']['large-proxy']:.1f}" for board in boards]
    assert row("**gap closed**").split(" | ")[1:] == [*closed[:-1], f"{closed[-1]} |"]
    kept = [f"{100 * board['retained_kept']:.1f}" for board in boards]
    assert row("retained accuracy kept").split(" | ")[1:] == [*kept[:-1], f"{kept[-1]} |"]
    for board in boards:
        assert f"{100 * board['forget']['large-unlearned']:.1f}" in row("forget set")


def test_the_speed_figures_are_those_of_the_results() -> None:
    medium, small = (json.loads((RESULTS / f"step-{size}.json").read_text())["results"] for size in ("medium", "small"))
    for index, batch in enumerate((1, 4, 16)):
        figures = [f"{result['step'][index]['composed_over_bare']:.2f}" for result in (medium, small)]
        assert row(f"composed step / bare, batch {batch} ").endswith(f"| {figures[0]} | {figures[1]} |")
    figures = [f"{result['concurrent']['speedup']:.1f}" for result in (medium, small)]
    assert row("16 requests at once").endswith(f"| {figures[0]} × | {figures[1]} × |")
