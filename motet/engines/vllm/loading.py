"""The operator's file → a running vLLM engine over one composite of its models."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from motet.engines.vllm.config import cached_composite, composite_data
from motet.engines.vllm.engine import VllmEngine
from motet.engines.vllm.internals import VllmUnavailable, touch
from motet.engines.vllm.memory import Capacity
from motet.engines.vllm.options import unfit_heads, unfit_members, unfit_options, unfit_quantization
from motet.engines.vllm.plugin import register
from motet.engines.vllm.speculation import OPTION, draft_of, problems_of, with_path
from motet.engines.vllm.stats import Tally
from motet.models.info import ModelInfo
from motet.settings import nearest

CACHE = Path("~/.cache/motet")
CHECK = "motet.engines.vllm.requests:Check"
WORKER = "motet.engines.vllm.worker.ComposedWorker"
SCHEDULER = "motet.engines.vllm.scheduler.LinkedScheduler"
# what the engine itself decides; an operator who sets one of them reads why
OWNED = {
    "model": "the models of the file",
    "tokenizer": "the models' own",
    "skip_tokenizer_init": "texts are tokenized by the server",
    "logits_processors": "drawing is the server's own",
    "worker_cls": "the worker that draws from compositions",
    "logprobs_mode": "the composed log-probs are reported",
    "max_logprobs": "traces are handed out as log-probs",
    "async_scheduling": "rules and penalties read the last token before the next step begins",
    "disable_hybrid_kv_cache_manager": "members with and without windows share one block table",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
}
REFUSED = {
    "enable_lora": "adapters of experts are merged into their weights when they are loaded",
    "hf_overrides": "they would change the composite, not its members",
}


class EngineArgsError(ValueError):
    """`problems`: engine_args that cannot be taken, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model of the operator's file: `path` is a folder or a hub id. `tokenizer` is where its tokenizer lies, if not
    there: (path, revision)."""

    path: str
    revision: str | None = None
    tokenizer: tuple[str, str | None] | None = None


def start(
    models: Mapping[str, Checkpoint],
    infos: Mapping[str, ModelInfo],
    *,
    max_running: int = 64,
    engine_args: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    cache: Path = CACHE,
) -> VllmEngine:
    """One vLLM engine over all models, which share a vocabulary.

    Args:
        models: name → checkpoint; the first stands for the composite where vLLM asks for shapes.
        infos: what is known of them (see `inspection`).
        engine_args: vLLM's own AsyncEngineArgs.
        memory: those that size its KV cache (see `memory`); they go over `engine_args`.
        cache: where the composite's configuration is written.

    Raises:
        VllmUnavailable: vLLM is missing, of an unsupported version, or asked for a runner that cannot run here.
        EngineArgsError: options that this engine decides, refuses, or that vLLM does not know; models that they
            do not fit.
    """
    register()
    named = dict(engine_args or {})
    check_engine_args(named, models)
    check_runner(named)
    check_models(models, infos, named)
    given = with_path(named, {name: source.path for name, source in models.items()})
    # stages of a pipeline hand all members' columns on, several steps at once
    data = composite(models, infos, skips=given.get("pipeline_parallel_size", 1) == 1)
    own = _own_options(data, cached_composite(data, cache.expanduser()), max_running)
    tally = Tally()
    args = touch("AsyncEngineArgs")(**own | given | dict(memory or {}))
    llm = touch("AsyncLLM").from_engine_args(args, stat_loggers=[tally.logger()])
    capacity = _capacity(llm, infos, models, data["max_position_embeddings"], draft_of(named))
    linked = given.get("scheduler_cls", SCHEDULER) == SCHEDULER
    engine = VllmEngine(llm, infos, capacity, tally, linked=linked, drafts=given.get(OPTION) is not None)
    del llm  # vLLM keeps this frame alive; its engine must go when ours closes
    return engine


def _own_options(data: Mapping[str, Any], folder: Path, max_running: int) -> dict[str, Any]:
    """vLLM's AsyncEngineArgs for the composite that `data` describes and `folder` holds."""
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "logprobs_mode": "raw_logits",
        "max_logprobs": -1,
        "async_scheduling": False,
        "dtype": data["dtype"],
        "max_model_len": data["max_position_embeddings"],
        "max_num_seqs": max_running,
        "enable_prefix_caching": True,
        "disable_hybrid_kv_cache_manager": True,
        "disable_log_stats": True,
    }


def composite(
    models: Mapping[str, Checkpoint], infos: Mapping[str, ModelInfo], *, skips: bool = False
) -> dict[str, Any]:
    """The composite's configuration.

    Args:
        skips: see `CompositeConfig`; not for vLLM's own server, whose clients' prefixes nobody salts.
    """
    return composite_data(
        {
            name: {"path": source.path, "revision": source.revision, "tokenizer": source.tokenizer}
            for name, source in models.items()
        },
        vocab_size=min(info.vocab_size for info in infos.values()),
        max_model_len=min(info.max_model_len for info in infos.values()),
        ends=sorted({token for info in infos.values() for token in info.eos_token_ids}),
        dtype=next(iter(infos.values())).dtype,
        skips=skips,
    )


def check_runner(given: Mapping[str, Any]) -> None:
    """The operator's environment decides which of vLLM's two model runners serves, else vLLM by itself; stages run on
    the first.

    Args:
        given: vLLM's AsyncEngineArgs, checked (`check_engine_args`).

    Raises:
        VllmUnavailable: the second one is asked for where it would fail at its first step.
        EngineArgsError: it is asked for together with pipeline stages.
    """
    wanted = touch("envs").VLLM_USE_V2_MODEL_RUNNER
    if given.get("pipeline_parallel_size", 1) > 1:
        if wanted:
            raise EngineArgsError(
                [
                    "engine_args.pipeline_parallel_size: stages of a composite run on vLLM's first model runner; unset "
                    "VLLM_USE_V2_MODEL_RUNNER, or set it to 0."
                ]
            )
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if wanted and not touch("HAS_TRITON"):
        raise VllmUnavailable(
            "VLLM_USE_V2_MODEL_RUNNER=1 asks for vLLM's Model Runner V2, which needs Triton for this device, and none "
            "is there: unset it, or set it to 0"
        )


def check_engine_args(given: Mapping[str, Any], models: Collection[str] = ()) -> None:
    """Raises EngineArgsError: every option that cannot be taken, with the reason. `models`: names in the file."""
    options = fields(touch("AsyncEngineArgs"))
    known = {field.name for field in options if not field.name.startswith("_")}
    problems = problems_of(given, models) + unfit_options(given, options)
    for name, value in given.items():
        if name in OWNED:
            problems.append(f"engine_args.{name}: not taken, {OWNED[name]}.")
        elif name in REFUSED and value:
            problems.append(f"engine_args.{name}: {REFUSED[name]}.")
        elif name not in known:
            problems.append(f"engine_args.{name}: vLLM has no such option.{nearest(name, known)}")
    if problems:
        raise EngineArgsError(problems)


def check_models(models: Mapping[str, Checkpoint], infos: Mapping[str, ModelInfo], given: Mapping[str, Any]) -> None:
    """Raises EngineArgsError: every model that vLLM could not load under these options, by its place in the file."""
    configs = {
        name: touch("get_config")(source.path, trust_remote_code=False, revision=source.revision)
        for name, source in models.items()
    }
    dtype = next(iter(infos.values())).dtype
    problems = unfit_members(configs, given) + unfit_heads(configs) + unfit_quantization(configs, given, dtype)
    if problems:
        raise EngineArgsError(problems)


def _capacity(
    llm: Any, infos: Mapping[str, ModelInfo], models: Mapping[str, Checkpoint], length: int, draft: str | None
) -> Capacity:
    """What vLLM's cache holds: every token has keys and values of each distinct checkpoint, and of the draft's own."""
    config = llm.vllm_config
    blocks, block = config.cache_config.num_gpu_blocks, config.cache_config.block_size
    distinct = {source: infos[name].kv_bytes_per_token for name, source in models.items()}
    return Capacity(
        max_model_len=length,
        tokens=(blocks - 1) * block,  # one block is vLLM's own, which holds nothing
        bytes_per_token=sum(distinct.values()) + (infos[draft].kv_bytes_per_token if draft else 0),
        rows=config.scheduler_config.max_num_seqs,
        engines=config.parallel_config.data_parallel_size,
        block=block,
        ahead=config.num_lookahead_tokens,
        kept_free=int(config.scheduler_config.watermark * blocks) * block,
    )
