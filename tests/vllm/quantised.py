"""Quantised checkpoints, written as llm-compressor writes them, and what their weights stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

GROUP = 32
safetensors_torch = cast(Any, safetensors.torch)
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
INT4: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
}


def save_int4(source: Path, folder: Path) -> tuple[Path, Path]:
    """The layers' matrices in 4 bits with one scale per 32 inputs; → the checkpoint, and the same numbers unpacked."""
    packed, plain = folder / "packed", folder / "plain"
    for path in (packed, plain):
        shutil.copytree(source, path)
    short: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = safetensors_torch.load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if ".layers." not in name or not name.endswith("proj.weight"):
            short[name] = whole[name] = weight
            continue
        groups = weight.view(len(weight), -1, GROUP)
        scales = groups.abs().amax(-1) / 7
        levels = (groups / scales[..., None]).round().clamp(-8, 7)
        whole[name] = (levels * scales[..., None]).flatten(1)
        short[f"{name}_packed"] = _packed(levels.flatten(1).to(torch.int64) + 8)
        short[f"{name}_scale"] = scales
        short[f"{name}_shape"] = torch.tensor(weight.shape)
    safetensors_torch.save_file(short, packed / "model.safetensors", metadata={"format": "pt"})
    safetensors_torch.save_file(whole, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": INT4}))
    return packed, plain


def _packed(levels: Tensor) -> Tensor:
    """Eight numbers of 4 bits in one int32, the first lowest."""
    words = (levels.view(len(levels), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
