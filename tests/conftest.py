"""Settings that must stand before torch is imported anywhere: the tests' models are far too small for several threads,
and idle threads that spin slow a busy machine down many times."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
