"""Quantised members: each checkpoint says how it is quantised, and is loaded so beside others that are not.

vLLM knows one quantisation per engine, but builds a draft model under a configuration of its own; so do the members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from motet.engines.vllm.internals import touch
from motet.settings import nearest


def quant_config(vllm_config: Any, hf_config: Any, path: str, revision: str | None) -> Any:
    """How a member is quantised, vLLM's own QuantizationConfig; None where it is not.

    Raises:
        ValueError: the installed vLLM does not know the method, or not on this device or in this dtype.
    """
    model = vllm_config.with_hf_config(hf_config, architectures=hf_config.architectures).model_config
    model.model, model.revision = path, revision
    model._verify_quantization()
    return vllm_config.get_quantization_config(model, vllm_config.load_config)


def quantization_of(hf_config: Any) -> dict[str, Any] | None:
    """What a checkpoint says of its quantisation, with its `quant_method`; None where it is not quantised."""
    for config in (hf_config, hf_config.get_text_config()):
        written = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
        if written:
            return {"quant_method": "compressed-tensors"} | dict(written)
    return None


def unfit_quantization(configs: Mapping[str, Any], given: Mapping[str, Any], dtype: str) -> list[str]:
    """One sentence for each model that cannot be loaded as its checkpoint is quantised.

    Args:
        configs: name → configuration of the checkpoint.
        given: vLLM's AsyncEngineArgs.
        dtype: of all models.
    """
    problems: list[str] = []
    for name, config in configs.items():
        written = quantization_of(config)
        if written is None:
            continue
        if given.get("quantization"):
            problems.append(
                f"engine.engine_args.quantization: '{name}' is quantised in its checkpoint "
                f"({written['quant_method']}), and every model is loaded as its checkpoint says; the option is for "
                "files of which none is quantised."
            )
        problems += _unknown(name, written, dtype)
    return problems


def _unknown(name: str, written: dict[str, Any], dtype: str) -> list[str]:
    method = str(written["quant_method"]).lower()
    known: list[str] = list(touch("QUANTIZATION_METHODS"))
    if method not in known:
        return [f"models.{name}: vLLM has no quantisation '{method}'.{nearest(method, known)}"]
    try:
        taken = touch("get_quantization_config")(method).from_config(written).get_supported_act_dtypes()
    except (ValueError, KeyError, NotImplementedError) as error:
        return [f"models.{name}: vLLM cannot read its quantisation ({method}): {error}."]
    allowed = [str(one).removeprefix("torch.") for one in taken]
    if _is_weight_only(written):
        allowed = [one for one in allowed if one != "float32"]
    if dtype in allowed:
        return []
    return [f"engine.dtype: '{name}' is quantised with {method}, which runs in {' or '.join(allowed)}, not in {dtype}."]


def _is_weight_only(written: Mapping[str, Any]) -> bool:
    """Whether compressed tensors keep their activations whole: vLLM takes float32 there, its kernels do not."""
    groups: Mapping[str, Mapping[str, Any]] = written.get("config_groups") or {}
    return any(not group.get("input_activations") for group in groups.values())
