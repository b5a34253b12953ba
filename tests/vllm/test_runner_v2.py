"""Model Runner V2, which is vLLM's default on GPUs: the same answers, from a process of its own.

On a CPU it runs through Triton's interpreter and a shim, both of which hold for a whole process: the other tests of
the engine are run again there, and some of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
FILES = ("test_exactness.py", "test_linked.py", "test_grammars.py", "second_runner.py")
# these take their time in an interpreter; second_runner has smaller cases of them, prefixes are found by the scheduler
LEFT_OUT = "memory_pressure or leaving_ends or (drawing and contrastive) or a_prefix_is_found"


def environment() -> dict[str, str]:
    """What makes the second runner work without a GPU."""
    paths = [str(ROOT), str(FOLDER / "shim"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.mark.timeout(1500)
def test_the_second_runner_answers_alike() -> None:
    """One engine for all of it."""
    files = [str(FOLDER / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "500", "-k", f"not ({LEFT_OUT})", *files]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1480)
    assert ended.returncode == 0, ended.stdout[-8000:]
