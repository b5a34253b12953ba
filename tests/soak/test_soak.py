"""Short forms of `python -m tests.soak fuzz`, `aborts` and `kills`, with fixed seeds. The long forms are commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from motet.demo.family import build_family
from motet.demo.recipe import TINY
from tests.soak.aborts import aborts
from tests.soak.client import Answer, judge
from tests.soak.fuzz import fuzz
from tests.soak.generator import Request
from tests.soak.process import Launch

SHAPED = b'{"error": {"message": "%s", "type": "invalid_request_error", "param": null, "code": null}}'
STREAM = {"content-type": "text/event-stream"}
ROUNDING = 1e-5  # nats in float32: how much of a prompt the cache still holds decides what is computed in one product
FEWEST_ANSWERED = 30  # of 400 requests: else only refusals would have been seen


@pytest.mark.parametrize(
    ("status", "headers", "body", "kinds"),
    [
        (400, {}, SHAPED % b"No.", []),
        (503, {"retry-after": "3"}, SHAPED % b"Full.", []),
        (500, {}, SHAPED % b"Oh.", ["5xx"]),
        (503, {}, SHAPED % b"Full.", ["5xx"]),
        (400, {}, b"Bad Request", ["error_shape"]),
        (422, {}, b'{"detail": []}', ["error_shape"]),
        (400, {}, SHAPED % (b"b" * 2048), ["error_size"]),
        (400, {}, SHAPED % (b"a" * 300), ["echo"]),
        (200, {"content-type": "application/json"}, b'{"logprob": NaN}', ["not_json"]),
        (200, STREAM, b"data: {}\n\n", ["stream_cut"]),
        (200, STREAM, b'data: {"error": {"type": "server_error"}}\n\ndata: [DONE]\n\n', ["stream_error"]),
        (200, STREAM, b"data: {}\n\ndata: [DONE]\n\n", []),
        (200, STREAM, b'event: x\ndata: {}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n', []),
        (200, STREAM, b'event: error\ndata: {"type": "error", "error": {"type": "api_error"}}\n\n', ["stream_error"]),
        (200, STREAM, b'event: response.completed\ndata: {"response": {"error": null}}\n\n', []),
    ],
)
def test_faults_are_seen(status: int, headers: dict[str, str], body: bytes, kinds: list[str]) -> None:
    sent = Request("POST", "/v1/completions", body=b"a" * 1000)
    answer = Answer(status, 0.1, httpx.Headers(headers), body)
    assert [finding.kind for finding in judge(sent, 0, answer)] == kinds


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = build_family(0, tmp_path_factory.mktemp("families"), TINY)
    return Launch(folder / "models.yaml", flags=("--dtype", "float32", "--log-level", "error"))


def test_generated_requests(launch: Launch) -> None:
    """Values made to explode are left to the command: each kind gets a test of its own where it is mended."""
    tally = fuzz(launch, 400, seed=0, explosive=0.0, concurrency=4)
    assert not [finding.line(0)[:2000] for finding in tally.findings]
    assert not tally.deaths
    assert tally.statuses["200"] > FEWEST_ANSWERED
    assert tally.quiet.asked == 2
    assert not tally.quiet.other_texts
    assert tally.quiet.largest_difference <= ROUNDING


def test_clients_that_leave(launch: Launch) -> None:
    outcome = aborts(launch, 60, seed=0, concurrency=8)
    assert outcome["alive"]
    assert not outcome["broken"]
    assert outcome["idle_after_s"] is not None, outcome["gauges"]
    assert outcome["all_places_free"]
    assert outcome["probe"]["asked"] == 2
    assert not outcome["probe"]["other_texts"]
    assert outcome["probe"]["largest_difference"] <= ROUNDING
    assert len(outcome["left"]) > 6, "clients left at all moments"


def test_servers_that_are_killed(launch: Launch, tmp_path: Path) -> None:
    """In a process of its own, which takes every orphan for one of a killed server."""
    out = tmp_path / "kills.json"
    given = ["--family", str(launch.file.parent), "--seed", "1", "--servers", "3", "--trainers", "0", "--out", str(out)]
    flags = [f"--flag={flag}" for flag in launch.flags]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "kills", *given, *flags], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(out.read_text())["results"]["server"]
    assert not outcome["faults"]
    assert sum(outcome["ended"].values()) == 4
    assert outcome["probe"]["asked"] >= 2
