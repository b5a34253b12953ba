"""From the operator's file to what vLLM is started with: nothing here starts an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from motet.engines.vllm import loading
from motet.engines.vllm.internals import touch
from motet.engines.vllm.memory import Capacity, KvCache, Utilization, memory_of
from motet.models.info import ModelInfo
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine

CONTRAST = {"base": "llama", "strategy": "contrastive", "amateur": "llama-b"}
APART = {"a": ["llama", "llama-c"], "b": ["llama-b"]}


@pytest.mark.parametrize(
    ("engine_args", "given", "memory"),
    [
        ({}, False, KvCache(2 << 30)),  # on a CPU
        ({}, True, KvCache(2 << 30)),
        ({"gpu_memory_utilization": 0.5}, False, Utilization(0.5)),
    ],
)
def test_memory_is_what_the_file_says(engine_args: dict[str, Any], given: bool, memory: KvCache | Utilization) -> None:
    assert memory_of(engine_args, 2.0, given=given) == memory


def test_on_a_gpu_vllm_takes_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touch("current_platform"), "is_cpu", lambda: False)
    assert memory_of({}, 1.0, given=False) == Utilization(touch("AsyncEngineArgs").gpu_memory_utilization)
    assert memory_of({}, 1.0, given=True) == KvCache(1 << 30)


def test_parts_follow_what_fills_the_memory(infos: dict[str, ModelInfo]) -> None:
    assert KvCache(1000).part(0.3) == {"kv_cache_memory_bytes": 300}
    assert Utilization(0.8).part(0.5) == {"gpu_memory_utilization": 0.4}
    info = infos["llama"]
    assert KvCache(1).cost(info) == info.kv_bytes_per_token
    assert Utilization(1).cost(info) == 4 * info.num_parameters


def write(paths: Mapping[str, Path], folder: Path, **other: Any) -> Path:
    models = {name: {"path": str(paths[name])} for name in ("llama", "llama-b", "llama-c")}
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": models, **other}, sort_keys=False))
    return file


def refused(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(file))
    return refusal.value.problems


def test_two_sizes_of_one_memory(paths: dict[str, Path], tmp_path: Path) -> None:
    engine = {"kind": "vllm", "kv_cache_gib": 1, "engine_args": {"gpu_memory_utilization": 0.5}}
    (problem,) = refused(write(paths, tmp_path, engine=engine))
    assert problem.startswith("engine.engine_args.gpu_memory_utilization: engine.kv_cache_gib sizes")
    engine = {"kind": "vllm", "engine_args": {"kv_cache_memory_bytes": 5}}
    assert refused(write(paths, tmp_path, engine=engine)) == [
        "engine.engine_args.kv_cache_memory_bytes: not taken, engine.kv_cache_gib."
    ]


def test_a_runner_that_cannot_run_is_a_problem_of_the_file(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    (problem,) = refused(write(paths, tmp_path, engine={"kind": "vllm"}))
    assert problem.startswith("engine.kind: VLLM_USE_V2_MODEL_RUNNER=1 asks for")
    engine = {"kind": "vllm", "engine_args": {"pipeline_parallel_size": 2}}
    (problem,) = refused(write(paths, tmp_path, engine=engine))
    assert problem.startswith("engine.engine_args.pipeline_parallel_size: stages")


def test_models_that_do_not_fit_are_told_of_all_families(paths: dict[str, Path], tmp_path: Path) -> None:
    """Before the first engine starts."""
    engine = {"kind": "vllm", "families": APART, "engine_args": {"pipeline_parallel_size": 9}}
    problems = refused(write(paths, tmp_path, engine=engine))
    assert [problem.split("'")[1] for problem in problems] == ["llama", "llama-c", "llama-b"]


def test_named_compositions_lie_in_one_family(paths: dict[str, Path], tmp_path: Path) -> None:
    """Told before anything starts."""
    file = write(paths, tmp_path, compositions={"c": CONTRAST}, engine={"kind": "vllm", "families": APART})
    (problem,) = refused(file)
    assert problem.startswith("compositions.c: models 'llama' and 'llama-b' are in two vLLM engines")
    assert "engine.families puts them in 'a' and 'b'" in problem


class Started:
    """An engine that is up until it is shut down."""

    def __init__(self, models: Mapping[str, Any], infos: Mapping[str, ModelInfo], **options: Any) -> None:
        self.models, self.options, self.is_up = infos, options, True
        self.capacity = Capacity(100, 1000, 8, 4)

    def shutdown(self) -> None:
        self.is_up = False


def test_each_engine_gets_its_part(paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By keys and values per token: `llama` has 2 layers, as `llama-b` has, `llama-c` 3 of the same width."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    started: list[Started] = []

    def start(*args: Any, **options: Any) -> Started:
        started.append(Started(*args, **options))
        return started[-1]

    monkeypatch.setattr(loading, "start", start)
    engine = {"kind": "vllm", "families": APART, "kv_cache_gib": 7, "max_running": 7, "dtype": "float32"}
    told: list[str] = []
    both, _ = load_engine(load(write(paths, tmp_path, engine=engine)), told.append)
    assert list(both.models) == ["llama", "llama-c", "llama-b"]
    assert [one.options["memory"] for one in started] == [
        {"kv_cache_memory_bytes": 5 << 30},
        {"kv_cache_memory_bytes": 2 << 30},
    ]
    assert [one.options["max_running"] for one in started] == [7, 7]
    assert told[:2] == [
        "starting vLLM with llama, llama-c",
        "llama, llama-c: a token takes 8 bytes, all of their keys and values; the cache holds 1,000 tokens",
    ]
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    load_engine(load(tmp_path / "models.yaml"), told.append)
    assert "VLLM_CPU_KVCACHE_SPACE is set: each of the 2 engines takes that much, whatever the file says" in told


def test_what_started_is_ended_when_the_next_does_not_start(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Started] = []

    def start(*args: Any, **options: Any) -> Started:
        if started:
            raise RuntimeError("no memory")
        started.append(Started(*args, **options))
        return started[-1]

    monkeypatch.setattr(loading, "start", start)
    file = write(paths, tmp_path, engine={"kind": "vllm", "families": APART})
    assert refused(file) == ["vLLM did not start with llama-b: no memory"]
    assert [one.is_up for one in started] == [False]


def test_contexts_that_nobody_asked_for_are_as_long_as_the_cache_holds(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would start for minutes and then fail over the greatest length of models that read much."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(loading, "start", Started)
    info = 2 * 2 * 2 * 32 * 4  # bytes of a token of `llama`: keys and values, layers, heads, width, float32
    cache = (2 * info + 3 * 2 * 2 * 32 * 4) * 3 * 128 + 1  # three blocks of all three
    engine: dict[str, Any] = {"kind": "vllm", "dtype": "float32", "kv_cache_gib": cache / (1 << 30)}
    told: list[str] = []
    served, registry = load_engine(load(write(paths, tmp_path, engine=engine)), told.append)
    assert told[0] == (
        "llama, llama-b, llama-c: contexts are limited to 256 of 512 tokens, which is what the cache holds; "
        "engine.kv_cache_gib raises that"
    )
    assert {model.max_model_len for model in served.models.values()} == {256}
    assert {member.info.max_model_len for member in registry.members.values()} == {256}
    told.clear()
    load_engine(load(write(paths, tmp_path, engine={**engine, "max_model_len": 256})), told.append)
    assert told[0].startswith("starting vLLM")
    assert refused(write(paths, tmp_path, engine={**engine, "max_model_len": 300})) == [
        "engine.max_model_len: a context of 300 tokens of llama, llama-b, llama-c does not fit into the cache, which "
        "holds 256; lower it, or raise engine.kv_cache_gib."
    ]
    assert "holds 0;" in refused(write(paths, tmp_path, engine={**engine, "kv_cache_gib": 1e-6}))[0]


def test_devices_share_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    cache = KvCache(128 * 100 * 10)
    assert cache.held(1.0, 100, {}) == 9 * 128
    assert cache.held(0.5, 100, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}) == 19 * 128
    assert cache.held(1.0, 100, {"block_size": 32}) == 39 * 32
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert cache.held(1.0, 1 << 20, {}) == 7 * 128
