"""Short forms of `python -m tests.soak fuzz` and `aborts`, with fixed seeds. The long forms are commands."""

from __future__ import annotations

import pytest

from motet.demo.family import build_family
from motet.demo.recipe import TINY
from tests.soak.aborts import aborts
from tests.soak.fuzz import fuzz
from tests.soak.process import Launch

FEWEST_ANSWERED = 50  # of 300 requests: else only refusals would have been seen


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = build_family(0, tmp_path_factory.mktemp("families"), TINY)
    return Launch(folder / "models.yaml", flags=("--dtype", "float32", "--log-level", "error"))


def test_generated_requests(launch: Launch) -> None:
    """Values made to explode are left to the command: each kind gets a test of its own where it is mended."""
    tally = fuzz(launch, 300, seed=0, explosive=0.0, concurrency=4)
    assert not [finding.line(0)[:2000] for finding in tally.findings]
    assert not tally.deaths
    assert tally.statuses["200"] > FEWEST_ANSWERED
    assert tally.quiet.asked == 2
    assert not tally.quiet.different, tally.quiet.summary()


def test_clients_that_leave(launch: Launch) -> None:
    outcome = aborts(launch, 60, seed=0, concurrency=8)
    assert outcome["alive"]
    assert not outcome["broken"]
    assert outcome["idle_after_s"] is not None, outcome["gauges"]
    assert outcome["all_places_free"]
    assert outcome["probe"]["asked"] == 2
    assert not outcome["probe"]["different"], outcome["probe"]
    assert len(outcome["left"]) > 6, "clients left at all moments"
