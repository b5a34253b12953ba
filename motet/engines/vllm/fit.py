"""Whether every model can be cut as the parallel sizes want it: vLLM itself asks the first one alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from motet.engines.vllm.internals import touch

PARTITION = "VLLM_PP_LAYER_PARTITION"  # of vLLM: layers per stage, "6,10"


def unfit_members(configs: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One sentence for each model that tensor or pipeline parallelism cannot cut.

    Args:
        configs: name → configuration of the checkpoint.
        given: vLLM's AsyncEngineArgs, checked (`options`).
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
