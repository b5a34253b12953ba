"""What a composite cannot take of vLLM is refused by name, and what it can is cut and held as it must be."""

from __future__ import annotations

import dataclasses
import os
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from motet.engines.vllm.internals import VllmUnavailable, touch
from motet.engines.vllm.loading import (
    Checkpoint,
    EngineArgsError,
    check_engine_args,
    check_models,
    check_runner,
)
from motet.engines.vllm.options import (
    CHOICES,
    PARTITION,
    SIZES,
    UNFIT,
    unfit_heads,
    unfit_members,
    unfit_options,
    unfit_quantization,
)
from motet.engines.vllm.scheduler import LinkedScheduler
from motet.engines.vllm.stages import Handover
from motet.engines.vllm.wire import KEY
from motet.models.info import ModelInfo
from tests.vllm.models import MAKERS, shape
from tests.vllm.quantised import INT4

OPTIONS = dataclasses.fields(touch("AsyncEngineArgs"))
SHALLOW = LlamaConfig(**shape(num_hidden_layers=1), architectures=["LlamaForCausalLM"])
THREE = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
DEEP = LlamaConfig(**shape(num_hidden_layers=5, **THREE), architectures=["LlamaForCausalLM"])


def test_every_refused_option_is_one_of_vllms() -> None:
    assert {*CHOICES, *(name for names in UNFIT.values() for name in names)} <= {field.name for field in OPTIONS}


def test_options_without_effect_are_refused_but_not_at_their_defaults() -> None:
    taken = {
        "runner": "auto",
        "seed": 0,
        "max_loras": 1,
        "load_format": "pt",
        "enable_dbo": False,
        "pooler_config": None,
    }
    assert unfit_options(taken, OPTIONS) == []
    args = {"runner": "pooling", "seed": 7, "load_format": "dummy", "offload_backend": "prefetch", "spec_model": "x"}
    with pytest.raises(EngineArgsError) as caught:
        check_engine_args(args)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [f"engine_args.{name}" for name in args]

    with pytest.raises(EngineArgsError) as caught:
        check_engine_args({"tensor_parallel_size": "two", "pipeline_parallel_size": 0, "data_parallel_size": 2})
    assert [problem.split(":")[0].split(".")[1] for problem in caught.value.problems] == list(SIZES[:2])

    drafts = {"method": "ngram", "num_speculative_tokens": 2}
    check_engine_args({"speculative_config": drafts, "pipeline_parallel_size": 1})
    with pytest.raises(EngineArgsError, match="no drafter beside pipeline stages"):
        check_engine_args({"speculative_config": drafts, "pipeline_parallel_size": 2})


def test_a_runner_that_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU has no Triton for its device."""
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    check_runner({})
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(VllmUnavailable, match="Triton"):
        check_runner({})
    with pytest.raises(EngineArgsError, match="first model runner"):
        check_runner({"pipeline_parallel_size": 2})
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    check_runner({"pipeline_parallel_size": 2})
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0", "where vLLM would choose the second one by itself"


def test_options_that_cannot_be_taken_are_named_all_at_once() -> None:
    check_engine_args({"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "enforce_eager": True})
    with pytest.raises(EngineArgsError) as refusal:
        check_engine_args({"model": "x", "tensor_paralel_size": 2, "enable_lora": True})
    text = "\n".join(refusal.value.problems)
    assert "the models of the file" in text
    assert "Did you mean 'tensor_parallel_size'?" in text
    assert "adapters of experts are merged" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}, None),
        ({"model": "llama-b", "num_speculative_tokens": 3}, None),
        ("ngram", "a mapping of method"),
        ({"model": "lama-b", "num_speculative_tokens": 3}, "Did you mean 'llama-b'?"),
        ({"model": "/etc/weights", "num_speculative_tokens": 3}, "none of the file's models"),
        ({"method": "ngram", "model": "llama", "num_speculative_tokens": 3}, "takes no model"),
        ({"method": "eagle", "model": "llama", "num_speculative_tokens": 3}, "'eagle' is not taken"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "from 1 on is expected, got 0"),
        ({"method": "ngram"}, "got None"),
        ({"method": "ngram", "num_speculative_token": 2}, "Did you mean 'num_speculative_tokens'?"),
    ],
    ids=str,
)
def test_drafters_come_from_the_file(config: Any, message: str | None) -> None:
    given = {"speculative_config": config}
    if message is None:
        check_engine_args(given, MAKERS)
        return
    with pytest.raises(EngineArgsError, match=re.escape(message)):
        check_engine_args(given, MAKERS)


def test_members_that_cannot_be_cut_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {"small": SHALLOW, "large": DEEP}
    assert unfit_members(configs, {"data_parallel_size": 2}) == []
    [heads] = unfit_members(configs, {"tensor_parallel_size": 2})
    assert "2 does not divide the 3 attention heads of 'large'" in heads
    narrow = LlamaConfig(**shape(hidden_size=96, num_attention_heads=6, num_key_value_heads=3))
    [shared] = unfit_members({"narrow": narrow}, {"tensor_parallel_size": 2})
    assert "2 does not fit the 3 heads of keys and values of 'narrow'" in shared
    monkeypatch.setenv(PARTITION, "2,3")
    [layers] = unfit_members(configs, {"pipeline_parallel_size": 2})
    assert "'small' has 1 layers, fewer than 2 stages" in layers
    monkeypatch.setenv(PARTITION, "2,2")
    [partition] = unfit_members({"large": DEEP}, {"pipeline_parallel_size": 2})
    assert "gives away 4 layers, 'large' has 5" in partition


def test_architectures_without_stages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleNamespace(inspect_model_cls=lambda: SimpleNamespace(supports_pp=False))
    monkeypatch.setitem(touch("ModelRegistry").models, "LlamaForCausalLM", whole)
    [problem] = unfit_members({"large": DEEP}, {"pipeline_parallel_size": 2})
    assert "LlamaForCausalLM" in problem
    assert "'large'" in problem


def quantised(**written: Any) -> LlamaConfig:
    return LlamaConfig(**shape(quantization_config=written))


def test_quantisation_that_vllm_cannot_load_is_named() -> None:
    int8 = {**INT4["config_groups"]["group_0"], "input_activations": {"num_bits": 8, "dynamic": True}}
    configs = {
        "plain": SHALLOW,
        "int4": quantised(**INT4),
        "int8": quantised(**{**INT4, "config_groups": {"group_0": int8}}),
        "awq": quantised(quant_method="awq", bits=4, group_size=32, zero_point=True),
        "odd": quantised(quant_method="awk"),
        "half": quantised(quant_method="awq"),
    }
    names = ("int4", "awq", "odd", "half")
    for problem, name in zip(unfit_quantization(configs, {}, "float32"), names, strict=True):
        assert f"'{name}'" in problem or f"models.{name}:" in problem
    assert unfit_quantization({"int4": configs["int4"], "awq": configs["awq"]}, {}, "float16") == []
    [asked] = unfit_quantization({"int4": configs["int4"]}, {"quantization": "fp8"}, "float16")
    assert "'int4' is quantised in its checkpoint (compressed-tensors)" in asked


def test_heads_that_vllm_cannot_compute_are_named() -> None:
    """Its worker ended with the first request: the demo family of the tests has heads of 16."""
    narrow = LlamaConfig(**shape(hidden_size=64, num_attention_heads=4, head_dim=16))
    given = LlamaConfig(**shape(hidden_size=64, num_attention_heads=4, head_dim=64))
    (problem,) = unfit_heads({"plain": SHALLOW, "narrow": narrow, "given": given})
    assert problem.startswith("models.narrow: vLLM's attention for CPUs has no heads of 16, only of 32, 64")


def test_models_are_checked_before_anything_starts(paths: dict[str, Any], infos: dict[str, ModelInfo]) -> None:
    models = {name: Checkpoint(str(path)) for name, path in paths.items()}
    check_models(models, infos, {})
    with pytest.raises(EngineArgsError, match="'llama-c' has 3 layers, fewer than 4 stages"):
        check_models(models, infos, {"pipeline_parallel_size": 4})


class Stage(nn.Module):
    """A member that hands over tensors of these shapes, of the model's dtype or of float32."""

    def __init__(self, shapes: list[tuple[list[int], bool]]) -> None:
        super().__init__()
        self.shapes = shapes

    def make_empty_intermediate_tensors(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        return touch("IntermediateTensors")(
            {
                f"t{number}": torch.zeros(batch_size, *dims, dtype=torch.float32 if exact else dtype, device=device)
                for number, (dims, exact) in enumerate(self.shapes)
            }
        )


@pytest.mark.parametrize("seed", range(20))
def test_what_members_hand_over_comes_back(seed: int) -> None:
    """Any number of members, tensors, dimensions and tokens."""
    rng = random.Random(seed)
    count = rng.randrange(5)
    members = [
        [([rng.randint(1, 3) for _ in range(rng.randint(1, 2))], rng.random() < 0.3) for _ in range(rng.randint(1, 3))]
        for _ in range(rng.randint(1, 3))
    ]
    modules = {f"m{number}": Stage(shapes) for number, shapes in enumerate(members)}
    handover = Handover(modules, torch.bfloat16)
    handed = {
        name: module.make_empty_intermediate_tensors(count, torch.bfloat16, torch.device("cpu"))
        for name, module in modules.items()
    }
    for part in handed.values():
        for tensor in part.tensors.values():
            tensor.fill_(rng.randrange(100))
    joined = handover.join(handed)
    assert len(joined.tensors) <= 2, "vLLM sends each on its own"
    empty = handover.empty(count, torch.device("cpu"))
    assert _kinds(joined) == _kinds(empty)
    for name, part in handover.cut(joined).items():
        assert part == handed[name]
        assert all(tensor.is_contiguous() for tensor in part.tensors.values())
    assert handover.cut(None) == dict.fromkeys(modules)


def _kinds(tensors: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
    def kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
        return tensor.shape, tensor.dtype

    return {name: kind(tensor) for name, tensor in tensors.tensors.items()}


def request(name: str, *, computed: int, in_flight: int = 0, group: str = "g") -> Any:
    params = SimpleNamespace(extra_args={KEY: {"link": {"group": group, "size": 2}}})
    return SimpleNamespace(
        request_id=name,
        sampling_params=params,
        num_computed_tokens=computed,
        num_tokens=9,
        num_in_flight_tokens=in_flight,
    )


def test_a_held_request_waits_for_partners_that_are_under_way() -> None:
    """Else two contexts in alternate steps of a pipeline would pass each other for ever."""
    held, preempted, partner = request("a", computed=9), request("b", computed=0), request("c", computed=9, in_flight=1)
    other = request("d", computed=9, group="h")
    scheduler: Any = object.__new__(LinkedScheduler)
    scheduler.requests = {one.request_id: one for one in (held, preempted, partner, other)}
    scheduler._held = {one.request_id: one for one in (held, preempted, other)}
    scheduler._release()
    assert [held.num_computed_tokens, preempted.num_computed_tokens, other.num_computed_tokens] == [9, 0, 8]
    partner.num_in_flight_tokens = 0
    scheduler._release()
    assert [held.num_computed_tokens, preempted.num_computed_tokens, other.num_computed_tokens] == [8, 0, 8]
    assert scheduler._held == {}
