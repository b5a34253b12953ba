"""What is expected of vLLM's internals, one test each: a new vLLM that breaks one of them names it here."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import pytest

from motet.engines.vllm import internals
from motet.engines.vllm.internals import TOUCHED, VllmUnavailable, check_version, touch


def parameters(name: str, method: str | None = None) -> list[str]:
    target = touch(name) if method is None else getattr(touch(name), method)
    return list(inspect.signature(target).parameters)


def source(name: str, method: str) -> str:
    return inspect.getsource(getattr(touch(name), method))


def module_source(name: str) -> str:
    return inspect.getsource(sys.modules[touch(name).__module__])


@pytest.mark.parametrize("name", TOUCHED)
def test_everything_is_where_it_is_expected(name: str) -> None:
    assert touch(name) is not None


def test_the_installed_version_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_version()
    for installed, message in ((None, "none is there"), ("0.31.9", "0.31.9 is installed"), ("strange", "strange")):
        found = dict.fromkeys(internals.DISTRIBUTIONS, installed)
        monkeypatch.setattr(internals, "_version", found.get)
        with pytest.raises(VllmUnavailable, match=message):
            check_version()


def test_a_missing_name_says_what_was_expected_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOUCHED, "Gone", internals.Touched("vllm.nowhere", "Gone", "to be there"))
    with pytest.raises(VllmUnavailable, match=r"vllm.nowhere.Gone.*to be there"):
        touch("Gone")


def test_engine_options() -> None:
    known = {field.name for field in dataclasses.fields(touch("AsyncEngineArgs"))}
    assert known >= {
        "model",
        "skip_tokenizer_init",
        "logits_processors",
        "scheduler_cls",
        "logprobs_mode",
        "max_logprobs",
        "async_scheduling",
        "disable_hybrid_kv_cache_manager",
        "max_num_seqs",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "data_parallel_size",
        "pipeline_parallel_size",
        "speculative_config",
        "enable_lora",
    }


def test_the_platform_says_how_memory_is_taken() -> None:
    assert isinstance(touch("current_platform").is_cpu(), bool)
    assert 0 < touch("AsyncEngineArgs").gpu_memory_utilization <= 1


def test_async_llm() -> None:
    assert {"prompt", "sampling_params", "request_id", "data_parallel_rank"} <= set(parameters("AsyncLLM", "generate"))
    assert {"engine_args", "stat_loggers"} <= set(parameters("AsyncLLM", "from_engine_args"))
    assert "timeout" in parameters("AsyncLLM", "shutdown")
    assert "self.output_handler = asyncio.create_task(" in inspect.getsource(touch("AsyncLLM"))
    assert "abort" in source("AsyncLLM", "generate"), "closing the iterator ends the request"


def test_sampling_params_carry_our_data() -> None:
    data = {"motet": {"type": "RowSpec", "plan": [1, 2.5, None, "x"]}}
    params = touch("SamplingParams")(temperature=0.0, extra_args=data, prompt_logprobs=40, logprobs=0)
    assert params.extra_args == data
    assert params.skip_reading_prefix_cache, "a prompt that is scored is computed as a whole"
    assert touch("RequestOutputKind").DELTA is not touch("RequestOutputKind").CUMULATIVE


def test_bad_requests_are_refused_in_the_front_end() -> None:
    """On both runners, by one class."""
    for name in ("LogitsProcessor", "LogitsProcessorV2"):
        assert "validate_params" in dir(touch(name))
    from motet.engines.vllm.requests import Check

    assert not inspect.isabstract(Check)
    assert issubclass(Check, (touch("LogitsProcessor"), touch("LogitsProcessorV2")))


def test_the_runner_knows_its_requests() -> None:
    """The rows of the batch are read from the runner itself."""
    text = source("GPUModelRunner", "_bookkeeping_sync")
    assert "req_ids = self.input_batch.req_ids" in text
    assert "req_state.output_token_ids.extend(sampled_ids)" in text, "the list itself grows"
    assert "self.requests[req_id]" in text
    text = source("GPUModelRunner", "_update_states")
    assert all(word in text for word in ("prompt_token_ids=", "output_token_ids=[]", "sampling_params="))
    assert "def req_ids" in inspect.getsource(touch("InputBatch"))


def test_the_worker_loads_into_its_runner() -> None:
    for name in ("CPUWorker", "Worker"):
        assert "load_model" in dir(touch(name))
    assert "self.model_runner" in inspect.getsource(touch("CPUWorker"))
    assert "worker_cls" in {field.name for field in dataclasses.fields(touch("AsyncEngineArgs"))}
    assert callable(touch("current_platform").is_cpu)


def test_samplers_are_called_as_ours_are() -> None:
    assert parameters("Sampler", "forward")[1:3] == ["logits", "sampling_metadata"]
    assert parameters("RejectionSampler", "forward")[1:] == ["metadata", "draft_probs", "logits", "sampling_metadata"]
    text = source("GPUModelRunner", "_sample")
    assert "return self.sampler(" in text
    assert "self.rejection_sampler(" in text
    assert {"num_draft_tokens", "draft_token_ids"} <= {
        field.name for field in dataclasses.fields(touch("SpecDecodeMetadata"))
    }
    assert "self.max_spec_len = max(self.num_draft_tokens)" in source("SpecDecodeMetadata", "__post_init__")
    assert "logprobs_tensors.filter(valid_mask.flatten())" in source("RejectionSampler", "parse_output")
    assert {"sampled_token_ids", "logprobs_tensors"} <= {
        field.name for field in dataclasses.fields(touch("SamplerOutput"))
    }
    assert touch("LogprobsTensors")._fields[:3] == ("logprob_token_ids", "logprobs", "selected_token_ranks")


def test_the_second_runner_asks_the_model_for_its_state() -> None:
    text = inspect.getsource(touch("resolve_model_state_cls"))
    assert 'hasattr(model, "get_model_state_cls")' in text
    state = touch("DefaultModelState")
    assert parameters("DefaultModelState")[0:] == ["vllm_config", "model", "encoder_cache", "device"]
    assert list(inspect.signature(state.add_request).parameters) == ["self", "req_index", "new_req_data"]
    assert list(inspect.signature(state.prepare_inputs).parameters) == ["self", "input_batch", "req_states"]
    assert list(inspect.signature(state.prepare_dummy_inputs).parameters) == ["self", "num_reqs", "num_tokens"]
    assert {"remove_request", "custom_sampler"} <= set(dir(state))
    text = source("GPUModelRunnerV2", "execute_model")
    assert "**self.model_state.prepare_inputs(input_batch, self.req_states)" in text
    assert "**model_state.prepare_dummy_inputs(num_reqs, num_tokens)" in inspect.getsource(
        touch("ModelCudaGraphManager")
    )


def test_the_environment_chooses_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, chosen in (("1", True), ("0", False), (None, None)):
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        if value is not None:
            monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        assert touch("envs").VLLM_USE_V2_MODEL_RUNNER is chosen
    assert isinstance(touch("HAS_TRITON"), bool)


def test_the_second_runner_says_who_comes_and_goes() -> None:
    """A preempted request leaves, and comes back as a new one with what it had drawn."""
    text = source("GPUModelRunnerV2", "add_requests")
    assert "self.model_state.add_request(req_index, new_req_data)" in text
    assert "self.model_state.remove_request(req_id)" in source("GPUModelRunnerV2", "_remove_request")
    assert "finished_req_ids.union(preempted_req_ids)" in source("GPUModelRunnerV2", "finish_requests")
    fields = {field.name for field in dataclasses.fields(touch("NewRequestData"))}
    assert {"req_id", "sampling_params", "prefill_token_ids"} <= fields
    assert isinstance(touch("NewRequestData").prompt_len, property)
    assert "scheduled_new_reqs.extend(scheduled_resumed_reqs)" in source("Scheduler", "schedule")
    assert "req._all_token_ids," in source("Scheduler", "schedule")


def test_the_second_runner_takes_the_samplers_word() -> None:
    """How many tokens a request got, and how many of the computed ones are void."""
    assert "custom = self.model_state.custom_sampler(self.sampler)" in source("GPUModelRunnerV2", "load_model")
    text = source("GPUModelRunnerV2", "sample")
    assert text.index("self.model.compute_logits(sample_hidden_states)") < text.index(
        "self.sampler(logits, input_batch)"
    )
    assert "sampler_output.num_sampled, sampler_output.num_rejected" in text
    fields = {field.name for field in dataclasses.fields(touch("SamplerOutputV2"))}
    assert fields >= {"sampled_token_ids", "logprobs_tensors", "num_nans", "num_sampled", "num_rejected"}
    fields = {field.name for field in dataclasses.fields(touch("InputBatchV2"))}
    assert fields >= {
        "num_reqs",
        "idx_mapping_np",
        "cu_num_logits_np",
        "num_computed_tokens_np",
        "num_scheduled_tokens",
        "prefill_len_np",
        "num_draft_tokens",
        "input_ids",
        "logits_indices",
        "query_start_loc",
        "num_tokens_after_padding",
    }
    assert parameters("RejectionSamplerV2")[:3] == ["sampler", "spec_config", "device"]
    assert touch("LogprobsTensors")._fields[3] == "cu_num_generated_tokens"
    assert "computed_delta = query_len - num_rejected" in inspect.getsource(
        inspect.getmodule(touch("InputBatchV2")) or int
    )
    assert "self.use_v2_model_runner = " in source("Scheduler", "__init__")


def test_prompt_scores_are_raw_too() -> None:
    text = source("GPUModelRunner", "_get_prompt_logprobs_dict")
    assert '"raw_logits"' in text
    assert "self.model.compute_logits(prompt_hidden_states)" in text
    text = source("GPUModelRunnerV2", "sample_tokens")
    assert text.index("self.sample(") < text.index("self.prompt_logprobs_worker.compute_prompt_logprobs(")
    assert '"raw_logits"' in module_source("PromptLogprobsWorker")


def test_the_runner_takes_tokens_back() -> None:
    """Linked requests rely on it: fewer output tokens than the runner has seen means that the last ones are void."""
    text = source("GPUModelRunner", "_update_states")
    assert "num_output_tokens < len(req_state.output_token_ids)" in text
    assert "del req_state.output_token_ids[num_output_tokens:]" in text


def test_the_scheduler_reads_what_the_runner_hands_over() -> None:
    assert parameters("Scheduler", "update_from_output") == ["self", "scheduler_output", "model_runner_output"]
    text = source("Scheduler", "update_from_output")
    assert "model_runner_output.sampled_token_ids" in text
    assert "model_runner_output.req_id_to_index[req_id]" in text


def test_the_scheduler_asks_its_queue_in_order() -> None:
    """Partners of running contexts are put at its head, which is asked first."""
    assert parameters("Scheduler", "schedule") == ["self", "throttle_prefills"]
    text = source("Scheduler", "schedule")
    assert "request_queue = self.waiting" in text
    assert "request = request_queue.peek_request()" in text
    assert "self.running: list[Request]" in source("Scheduler", "__init__")
    queue = touch("FCFSRequestQueue")("abcd")
    queue.remove_requests(["b", "d"])
    queue.prepend_request("d")
    assert list(queue) == ["d", "a", "c"]
    assert queue.peek_request() == "d"


def test_blocks_are_counted_as_the_scheduler_counts_them() -> None:
    """One of them holds nothing, drafts reach ahead, and some are kept from requests that wait."""
    assert "self.null_block = self.free_block_queue.popleft()" in source("BlockPool", "__init__")
    assert "num_tokens_main_model + num_lookahead_tokens, self.max_model_len" in source(
        "KVCacheManager", "allocate_slots"
    )
    assert "self.watermark_blocks = int(watermark * kv_cache_config.num_blocks)" in source("KVCacheManager", "__init__")
    assert isinstance(touch("VllmConfig").num_lookahead_tokens, property)


def test_members_are_built_and_loaded_apart() -> None:
    assert {"vllm_config", "prefix", "hf_config", "architectures"} <= set(parameters("init_vllm_registered_model"))
    loader = touch("DefaultModelLoader")
    assert {"model_or_path", "revision"} <= {field.name for field in dataclasses.fields(loader.Source)}
    assert list(inspect.signature(loader._get_weights_iterator).parameters) == ["self", "source"]
    assert {"trust_remote_code", "revision"} <= set(parameters("get_config"))


def test_stages() -> None:
    """A later stage's buffer, which vLLM allocates in a warm-up that its CPU worker may leave out."""
    text = source("GPUModelRunner", "_dummy_run")
    assert "self.model.make_empty_intermediate_tensors(" in text
    assert "batch_size=self.max_num_tokens" in text
    assert "if self.intermediate_tensors is None:" in text
    assert "assert self.intermediate_tensors is not None" in source(
        "GPUModelRunner", "sync_and_gather_intermediate_tensors"
    )
    assert parameters("CPUWorker", "compile_or_warm_up_model") == ["self"]
    tensors = touch("IntermediateTensors")({"a": 1})
    assert tensors.tensors == {"a": 1}
    assert callable(touch("get_pp_group"))
    assert callable(touch("current_platform").is_cpu)
    known = touch("ModelRegistry").models
    assert callable(known["LlamaForCausalLM"].inspect_model_cls)


def test_steps_under_way_are_counted() -> None:
    """Linked requests wait on it, since with stages several steps are under way at once."""
    assert "request.num_in_flight_tokens += num_scheduled_token" in source("Scheduler", "_update_after_schedule")
    assert "request.num_in_flight_tokens -= num_tokens_scheduled" in source("Scheduler", "update_from_output")


def test_members_are_quantised_one_by_one() -> None:
    assert "_verify_quantization" in dir(touch("ModelConfig"))
    assert {"model_config", "load_config"} == set(parameters("VllmConfig", "get_quantization_config"))
    assert {"hf_config", "architectures"} <= set(parameters("VllmConfig", "with_hf_config"))
    assert {"awq", "auto_gptq", "compressed-tensors", "fp8"} <= set(touch("QUANTIZATION_METHODS"))
    assert callable(touch("get_quantization_config")("awq").from_config)


def test_rows_of_tokens_are_known_in_a_forward() -> None:
    assert "query_start_loc" in {field.name for field in dataclasses.fields(touch("CPUAttentionMetadata"))}
    assert callable(touch("get_forward_context"))


def test_stat_loggers() -> None:
    assert parameters("StatLoggerBase", "record")[:3] == ["self", "scheduler_stats", "iteration_stats"]
    stats: Any = touch("SchedulerStats")()
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0.0)
    assert (stats.prefix_cache_stats.queries, stats.prefix_cache_stats.hits) == (0, 0)
    assert touch("IterationStats")().num_preempted_reqs == 0
