"""What one engine over several models cannot take, each with its reason: options of vLLM (every other one is passed
through), checkpoints under these options, and plans."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field
from typing import Any

from motet.composers.plan import Plan
from motet.composers.rules import DiscriminatorRule
from motet.engines.base import SIDES
from motet.engines.vllm.internals import touch
from motet.models.facts import head_width
from motet.settings import nearest

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
PARTITION = "VLLM_PP_LAYER_PARTITION"  # of vLLM: layers per stage, "6,10"
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


def unfit_members(configs: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One sentence for each model that tensor or pipeline parallelism cannot cut: vLLM itself asks the first one alone.

    Args:
        configs: name → configuration of the checkpoint.
        given: vLLM's AsyncEngineArgs, checked.
    """
    stages: int = given.get("pipeline_parallel_size", 1)
    ranks: int = given.get("tensor_parallel_size", 1)
    problems: list[str] = []
    for name, config in configs.items():
        if ranks > 1:
            problems += _heads(name, config.get_text_config(), ranks)
        if stages > 1:
            problems += _stages(name, config, stages)
    return problems


def _heads(name: str, text: Any, ranks: int) -> list[str]:
    """Heads are dealt out evenly; keys and values too, or each is kept by equally many ranks."""
    heads = getattr(text, "num_attention_heads", None)
    shared = getattr(text, "num_key_value_heads", None) or heads
    if not isinstance(heads, int) or not isinstance(shared, int):
        return []  # a model whose layers differ checks itself
    option = "engine.engine_args.tensor_parallel_size"
    if heads % ranks:
        return [f"{option}: {ranks} does not divide the {heads} attention heads of '{name}'."]
    if max(shared, ranks) % min(shared, ranks):
        return [f"{option}: {ranks} does not fit the {shared} heads of keys and values of '{name}'."]
    return []


def _stages(name: str, config: Any, stages: int) -> list[str]:
    option = "engine.engine_args.pipeline_parallel_size"
    layers = int(config.get_text_config().num_hidden_layers)
    given = os.environ.get(PARTITION)
    problems: list[str] = []
    if layers < stages:
        problems.append(f"{option}: '{name}' has {layers} layers, fewer than {stages} stages.")
    elif given and (count := sum(int(part) for part in given.split(","))) != layers:
        problems.append(f"{PARTITION}: it gives away {count} layers, '{name}' has {layers}; unset it.")
    for architecture in config.architectures or ():
        known = touch("ModelRegistry").models.get(architecture)
        if known is not None and not known.inspect_model_cls().supports_pp:
            problems.append(f"{option}: vLLM cannot cut a {architecture} into stages, which '{name}' is.")
    return problems


def quantization_of(hf_config: Any) -> dict[str, Any] | None:
    """What a checkpoint says of its quantisation, with its `quant_method`; None where it is not quantised."""
    for config in (hf_config, hf_config.get_text_config()):
        written = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
        if written:
            return {"quant_method": "compressed-tensors"} | dict(written)
    return None


def unfit_heads(configs: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose heads vLLM's attention for CPUs cannot compute: it starts with such a one, and
    its worker ends with the first request.

    Args:
        configs: name → configuration of the checkpoint.
    """
    if not touch("current_platform").is_cpu():
        return []
    known: list[int] = sorted(touch("CPUAttentionBackend").get_supported_head_sizes())
    widths = {name: head_width(config.get_text_config()) for name, config in configs.items()}
    return [
        f"models.{name}: vLLM's attention for CPUs has no heads of {width}, only of {', '.join(map(str, known))}; "
        "engine.kind: torch serves the model."
        for name, width in widths.items()
        if width not in known
    ]


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


def unsupported(plan: Plan, members: Collection[str]) -> str | None:
    """Why the plan cannot run over these members, None if it can."""
    if plan.heads:
        wanted = " or ".join(plan.heads)
        return (
            f"the composition asks a {wanted} on the base's hidden states, which vLLM's models do not hand out; the "
            "embedded engine runs it"
        )
    if plan.exits:
        return (
            "the composition leaves the base early, at hidden states that vLLM's models do not hand out; the embedded "
            "engine runs it"
        )
    if any(stream.tokens is not None for stream in plan.streams):
        return "a member has other tokens than the base (vocab: map); the embedded engine runs it"
    if plan.sides is not None:
        return SIDES
    if isinstance(plan.rule, DiscriminatorRule):
        return (
            "rule 'Discriminator' keeps sums over all tokens so far, which vLLM's workers lose with a preempted "
            "request; the embedded engine runs it"
        )
    for stream in plan.streams:
        if stream.model not in members:
            near = difflib.get_close_matches(stream.model, members, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"model {stream.model!r} is not loaded{hint}"
    return None
