"""Checkpoints whose weights are stored quantised (compressed-tensors, torchao, GPTQ, AWQ, …): whether transformers can
load them on this machine, asked of transformers itself before any weights are read."""

from __future__ import annotations

from typing import Any, cast


def method_of(config: Any) -> str | None:
    """How a checkpoint says that its weights are quantised, None where they are not."""
    written = _written(config)
    if written is None:
        return None
    return str(written.get("quant_method") or "compressed-tensors")


def problem(config: Any, device: str) -> str | None:
    """Why the weights cannot be loaded: the method and what it needs; None where they can.

    Args:
        config: the checkpoint's transformers configuration.
        device: "cpu" or "cuda…", where the model will be.
    """
    method, written = method_of(config), _written(config)
    if method is None or written is None:
        return None
    from transformers.quantizers import auto  # takes a second to import

    try:
        quantizer: Any = cast(Any, auto).AutoHfQuantizer.from_config(dict(written), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # each method has its own requirements and exceptions
        return f"its weights are quantised with {method!r}, which cannot be loaded here: {' '.join(str(error).split())}"
    return None


def _written(config: Any) -> dict[str, Any] | None:
    for holder in (config, config.get_text_config()):
        for field in ("quantization_config", "compression_config"):
            written = getattr(holder, field, None)
            if written:
                return cast("dict[str, Any]", written if isinstance(written, dict) else written.to_dict())
    return None
