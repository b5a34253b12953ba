"""The family behind the embedded engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from motet.engines.torch import EngineSettings, TorchEngine, load_member
from tests.policies.family import VOCAB, save_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_family(tmp_path_factory.mktemp("family"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(family: dict[str, Path]) -> AsyncIterator[TorchEngine]:
    members = {
        name: load_member(name, str(path), dtype=torch.float32, vocab_size=VOCAB) for name, path in family.items()
    }
    engine = TorchEngine(members, EngineSettings())
    yield engine
    await engine.close()
