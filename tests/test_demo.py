"""`run_demo` end to end on a tiny family: the real server in a process of its own, the real SDK."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from motet.demo.recipe import TINY
from motet.demo.run import ServerFailedError, run_demo, serving


def test_demo_end_to_end(tmp_path: Path) -> None:
    out, result = StringIO(), tmp_path / "result.json"
    board = run_demo(2, tmp_path, result, recipe=TINY, limit=3, console=Console(file=out, width=160))
    written = json.loads(result.read_text())
    assert written["scoreboard"]["seed"] == board.seed == 2
    assert written["recipe"] == TINY.digest
    assert set(written["seconds"]) == {"family", "server_start", "scoreboard"}
    printed = out.getvalue()
    assert "motet serve demo --seed 2" in printed.replace("\n", "")
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in printed
    assert "gap closed by large-proxy" in printed


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailedError, match="missing"), serving(tmp_path / "missing.yaml"):
        pass
