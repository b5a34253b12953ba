"""Tiny members behind both engines. One vLLM engine serves most tests: it takes its time to start."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from motet.engines.torch import EngineSettings, TorchEngine, load_member
from motet.engines.vllm.engine import VllmEngine
from motet.engines.vllm.loading import Checkpoint, start
from motet.models.facts import read_facts
from motet.models.info import ModelInfo
from tests.vllm.models import VOCAB, save_all

if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "1":  # see test_runner_v2
    os.environ.pop("TRITON_INTERPRET", None)  # a switch of the kernels' own tests, which vLLM reads too
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"

Paths = dict[str, Path]
# begun first, so that two processes end alike
LONGEST = ("test_runner_v2", "test_real", "test_launches")
# few and small blocks and chunks: prompts are cut, prefixes are found again, and memory runs out
SMALL = {"enforce_eager": True, "block_size": 32, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 120}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return save_all(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="session")
def infos(paths: Paths) -> dict[str, ModelInfo]:
    return {
        name: read_facts(name, str(path), None, dtype="float32", device="vllm", vocab_size=VOCAB, max_model_len=None)
        for name, path in paths.items()
    }


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def start_engine(
    paths: Mapping[str, Path], infos: Mapping[str, ModelInfo], cache: Path, **engine_args: object
) -> VllmEngine:
    sources = {name: Checkpoint(str(paths[name])) for name in infos}
    return start(sources, infos, max_running=40, engine_args=engine_args, cache=cache)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(paths: Paths, infos: dict[str, ModelInfo], cache: Path) -> AsyncIterator[VllmEngine]:
    engine = start_engine(paths, infos, cache, **SMALL)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded(paths: Paths) -> AsyncIterator[TorchEngine]:
    members = {
        name: load_member(name, str(path), dtype=torch.float32, vocab_size=VOCAB) for name, path in paths.items()
    }
    engine = TorchEngine(members, EngineSettings())
    yield engine
    await engine.close()
