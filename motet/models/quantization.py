"""How a checkpoint's weights are stored, and how a model's may be."""

from __future__ import annotations

from typing import Any, Literal

Quantization = Literal["int8", "int4"]


def quantization_of(hf_config: Any) -> dict[str, Any] | None:
    """What a checkpoint says of its quantisation, with its `quant_method`; None where it is not quantised."""
    for config in (hf_config, hf_config.get_text_config()):
        written = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
        if written:
            return {"quant_method": "compressed-tensors"} | dict(written)
    return None
