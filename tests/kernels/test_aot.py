"""Every kernel variant compiles for sm_90 and keeps its values in registers: no GPU is needed to know."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_variant_compiles_without_a_spill() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.aot"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["kernel"] for line in lines}) == 19
    assert [line for line in lines if line["stack"] or line["local"]] == []
    assert max(line["reg"] for line in lines) <= 255
    aligned = [line for line in lines if line["kernel"] == "scan" and line["constants"]["DTYPE"] == 5]
    # a grammar's words are read per token, which narrows the loads of a batch that has one
    unmasked = [line for line in aligned if line["constants"]["S"] == 0 and not line["constants"]["BOUND"]]
    assert unmasked
    assert {line["narrow_loads"] for line in unmasked} == {0}, "aligned bfloat16 rows are read in wide loads"
