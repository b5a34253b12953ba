"""Settings that must stand before torch is imported anywhere: the tests' models are far too small for several threads,
and idle threads that spin slow a busy machine down many times."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# without a GPU, Triton's kernels run in its interpreter, which they choose when they are imported
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# the same examples every time, however slow the machine; `pytest --hypothesis-profile default` looks for new ones
if find_spec("hypothesis"):  # the vLLM engine's environment has none
    from hypothesis import HealthCheck, settings

    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes share the tests out by their ids: of several with one id, one alone would run. Schemathesis' tests of
    an API's operations differ by name, but pytest 9.2 makes ids from the function.

    Raises:
        UsageError: ids that are the same all the same.
    """
    shared = Counter(item.nodeid for item in items)
    for item in items:
        if shared[item.nodeid] > 1:
            part = item.name.partition("[")[2].removesuffix("]")
            item._id = item.id.with_params(part)  # pyright: ignore[reportPrivateUsage]
    (most, count), *_ = Counter(item.nodeid for item in items).most_common(1) or [("", 0)]
    if count > 1:
        raise pytest.UsageError(f"{count} tests have the id {most}: of several processes none would run them all")
