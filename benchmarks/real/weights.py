"""Bytes that a step must read, and how fast this machine reads: the ceiling of every engine at batch 1."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

SCANNED = 1 << 30  # bytes: far beyond any cache
INT4_BITS = 4.5  # of a weight of 16 bits, its share of the group's scale included


def bytes_per_step(folder: Path) -> int:
    """All of a checkpoint's weights but an embedding that is not also the head: of it, a step reads single rows."""
    total = embedding = 0
    tied = True
    for file in folder.glob("*.safetensors"):
        for name, size in _tensors(file).items():
            total += size
            tied = tied and name != "lm_head.weight"
            embedding += size if name.endswith("embed_tokens.weight") else 0
    return total if tied else total - embedding


def _tensors(file: Path) -> dict[str, int]:
    """Bytes of each tensor, from a safetensors file's header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def bandwidth() -> float:
    """Bytes per second at which torch's threads read memory, the best of three scans."""
    tensor = torch.ones(SCANNED // 4)
    tensor.sum()
    return max(_scan(tensor) for _ in range(3))


def _scan(tensor: torch.Tensor) -> float:
    began = time.perf_counter()
    tensor.sum()
    return SCANNED / (time.perf_counter() - began)
