"""Options of vLLM that a composite cannot take, each with its reason; every other one is passed through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field
from typing import Any

# reason → options; vLLM's own default of each is taken
UNFIT: dict[str, tuple[str, ...]] = {
    "it would hold for the composite, not for its members": (
        "revision",
        "code_revision",
        "hf_config_path",
        "model_weights",
        "config_format",
        "model_class_overrides",
        "model_impl",
    ),
    "the server names models and reads and writes texts itself": (
        "served_model_name",
        "tokenizer_mode",
        "tokenizer_revision",
        "io_processor_plugin",
        "renderer_num_workers",
        "tokens_only",
        "reasoning_parser",
        "reasoning_parser_plugin",
        "reasoning_config",
        "generation_config",
        "override_generation_config",
        "enable_prompt_embeds",
    ),
    "the engine generates text": ("runner", "convert", "pooler_config", "diffusion_config"),
    "the models read text alone": (
        "allowed_local_media_path",
        "allowed_media_domains",
        "enable_mm_embeds",
        "interleave_mm_strings",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "mm_encoder_only",
        "ec_transfer_config",
    ),
    "tokens are drawn by the composition, seeded by each request": (
        "seed",
        "use_fp64_gumbel",
        "watermark_config",
        "enable_trace_replay",
        "return_sampling_mask",
        "enable_batch_sharded_sampling",
    ),
    "adapters of experts are merged into their weights when they are loaded": (
        "max_loras",
        "max_lora_rank",
        "max_cpu_loras",
        "lora_dtype",
        "lora_target_modules",
        "fully_sharded_loras",
    ),
    "say it in speculative_config": ("spec_method", "spec_model", "spec_tokens"),
    "vLLM would check it against the first model alone, whose heads and experts are not the others'": (
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
        "enable_expert_parallel",
        "enable_eplb",
        "enable_elastic_ep",
    ),
    "the rows of a step are composed together, not in two halves": ("enable_dbo", "ubatch_size"),
    "every model keeps its own attention window": ("disable_sliding_window",),
    "it leaves out positions of prompts, which are scored here": ("kv_sharing_fast_prefill",),
    "vLLM's prefetching offloader takes one model; use cpu_offload_gb": ("offload_group_size",),
    "requests carry no priority": ("scheduling_policy",),
    "one server speaks to all data-parallel copies": (
        "data_parallel_rank",
        "data_parallel_start_rank",
        "data_parallel_external_lb",
        "data_parallel_hybrid_lb",
        "data_parallel_multi_port_external_lb",
    ),
    "the server neither asks for it nor reports it": (
        "enable_sleep_mode",
        "weight_transfer_config",
        "enable_return_routed_experts",
        "per_request_spec_decode_metrics",
    ),
}
# the values that are taken, and why no other
CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "load_format": (
        ("auto", "hf", "safetensors", "pt", "npcache", "fastsafetensors", "instanttensor"),
        "by any other, vLLM would load the composite, which has no weights of its own",
    ),
    "offload_backend": (("auto", "uva"), "vLLM's prefetching offloader takes one model"),
}
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_REASONS = {name: reason for reason, names in UNFIT.items() for name in names}


def unfit_options(given: Mapping[str, Any], fields: Iterable[Field[Any]]) -> list[str]:
    """One sentence for each option that would be without effect, or wrong, and for parallel sizes that are none.

    Args:
        given: the operator's engine_args.
        fields: of vLLM's AsyncEngineArgs.
    """
    defaults = {field.name: _default(field) for field in fields}
    problems: list[str] = []
    for name, value in given.items():
        if name in CHOICES and value not in (None, *CHOICES[name][0]):
            allowed, reason = CHOICES[name]
            problems.append(f"engine_args.{name}: {value!r} is not one of {', '.join(allowed)}: {reason}.")
        elif name in _REASONS and value and value != defaults.get(name):
            problems.append(f"engine_args.{name}: {_REASONS[name]}.")
        elif name in SIZES and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"engine_args.{name}: a whole number from 1 on is expected, got {value!r}.")
    if given.get("speculative_config") and given.get("pipeline_parallel_size", 1) != 1:
        problems.append("engine_args.speculative_config: vLLM's runner starts no drafter beside pipeline stages.")
    return problems


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
