"""Settings that must stand before torch is imported anywhere: the tests' models are far too small for several threads,
and idle threads that spin slow a busy machine down many times."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# without a GPU, Triton's kernels run in its interpreter, which they choose when they are imported
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# the same examples every time; `pytest --hypothesis-profile default` looks for new ones
if find_spec("hypothesis"):  # the vLLM engine's environment has none
    from hypothesis import settings

    settings.register_profile("same", derandomize=True)
    settings.load_profile("same")
