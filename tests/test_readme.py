"""The README is short and tells the truth where a machine can check it. Its snippets run in `test_snippets`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from motet.composers.spec import strategy_names
from tests.test_packaging import FLOORS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_the_strategies_exist() -> None:
    table = README.split("## Strategies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    named = rows[1:]  # the first is the head
    assert named
    assert len(named) == len(set(named))
    assert set(named) <= set(strategy_names())


def test_the_house_has_its_floors() -> None:
    house = README.split("## How it is built")[1].split("```")[1]
    drawn = [set(re.split(r"\s{2,}", line.strip())) for line in house.strip().splitlines()]
    rooms = {room for floor in FLOORS for room in floor}
    for shown, floor in zip(drawn, FLOORS, strict=True):
        assert shown & rooms == set(floor) - {"settings", "environment", "heap", "cache"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", README):
        assert (ROOT / target).is_file(), target


def test_the_figures_are_those_of_the_results() -> None:
    rows = [
        json.loads(file.read_text())["scoreboard"]["exact_match"] for file in sorted(RESULTS.glob("demo-seed*.json"))
    ]
    base, expert, composed, tuned = (
        sorted(100 * row[name] for row in rows) for name in ("large", "small-chat", "large-proxy", "large-chat")
    )
    text = " ".join(README.split())
    assert base == [0.0] * 3
    assert "the larger base answers 0 % of the questions" in text
    assert f"the small expert {expert[0]:.1f} to {expert[-1]:.1f} %" in text
    assert f"both composed {composed[0]:.1f} to {composed[-1]:.1f} %" in text
    assert f"the larger model tuned directly {tuned[0]:.1f} to {tuned[-1]:.1f} %" in text
