"""One tiny workshop for all tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.run.workshop import build


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workshop"))
