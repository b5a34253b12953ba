"""Which models share a vLLM engine, what is wrong with the operator's wishes, and the engines behind one interface."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from motet.composers.plan import Plan, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import EngineError, GenerationRequest, SamplingParams, UnsupportedRequest
from motet.engines.vllm.families import Families, Family
from motet.engines.vllm.speculation import for_models
from motet.models.checkpoint import load_weights, read_tokenizer
from motet.operator.export import export
from motet.operator.families import per_family, shares
from motet.operator.file import ConfigError, Configuration, load
from motet.operator.listing import print_models
from motet.operator.loading_vllm import converted_checkpoint, inspect
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.operator.sources import find_sources
from motet.server.service import Service
from tests.fakes import FakeEngine, byte_tokenizer, fake_info, fake_member
from tests.ggufs import tiny_qwen, write_gguf
from tests.operator.test_loading import save_model

MODELS = {"one": "one", "two": "one", "odd": "other", "half": "one", "odd-b": "other"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "one", byte_tokenizer())
    save_model(folder / "other", byte_tokenizer(extra=["zz"]))
    return folder


def configuration(folder: Path, engine: dict[str, Any] | None = None) -> Configuration:
    models: dict[str, dict[str, str]] = {name: {"path": path} for name, path in MODELS.items()}
    models["half"]["dtype"] = "bfloat16"
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": models, "engine": {"kind": "vllm", **(engine or {})}}, sort_keys=False))
    return load(file)


def families_of(configuration: Configuration) -> dict[str, tuple[str, ...]]:
    _, _, families = inspect(configuration, find_sources(configuration))
    return {family.name: family.models for family in families}


def refused(folder: Path, families: Any) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        families_of(configuration(folder, {"families": families}))
    return refusal.value.problems


def test_models_that_can_share_an_engine_do(folder: Path) -> None:
    assert families_of(configuration(folder)) == {"one": ("one", "two"), "odd": ("odd", "odd-b"), "half": ("half",)}
    assert families_of(configuration(folder, {"dtype": "float32"}))["one"] == ("one", "two")


def test_the_operator_splits_them(folder: Path) -> None:
    asked = {"b": {"models": ["two"], "memory": 0.25}, "a": ["one"], "c": ["odd", "odd-b"], "d": ["half"]}
    assert families_of(configuration(folder, {"families": asked})) == {
        "b": ("two",),
        "a": ("one",),
        "c": ("odd", "odd-b"),
        "d": ("half",),
    }


def test_every_model_stands_in_one_family(folder: Path) -> None:
    assert refused(folder, {"a": ["one", "tow", "odd"], "b": ["odd", "odd-b"]}) == [
        "engine.families.a: the file has no model 'tow'. Did you mean 'two'?",
        "engine.families: model 'two' is in none; every model belongs to one.",
        "engine.families: model 'odd' is named 2 times, in a and b; every model belongs to one family, once.",
        "engine.families: model 'half' is in none; every model belongs to one.",
    ]


@pytest.mark.parametrize(
    ("memory", "told"),
    [((0.8, 0.5), "add up to 1.3"), ((1.0, None), "none is left for b"), ((0.0, None), "greater than 0")],
)
def test_fractions_that_leave_nothing(memory: tuple[float | None, float | None], told: str, folder: Path) -> None:
    models = [["one", "two", "half"], ["odd", "odd-b"]]
    entries = [{"models": names, "memory": part} for names, part in zip(models, memory, strict=True)]
    (problem,) = refused(folder, dict(zip("ab", entries, strict=True)))
    assert problem.startswith("engine.families")
    assert told in problem


@pytest.mark.parametrize("families", [{"a b": ["one"]}, {"a": []}, {"a": "one"}, [["one"]], {"a": {"model": ["one"]}}])
def test_families_of_another_form(families: Any, folder: Path) -> None:
    assert all(problem.startswith("engine.families") for problem in refused(folder, families))


def test_models_that_cannot_share_an_engine_are_told_why(folder: Path) -> None:
    dtypes, vocabularies = refused(folder, {"all": list(MODELS)})[:2]
    assert "'two' is float32" in dtypes
    assert "'half' is bfloat16" in dtypes
    assert dtypes.startswith("engine.families.all: ")
    assert "'zz' in 'odd'" in vocabularies


def test_a_list_of_models_comes_from_the_file(folder: Path) -> None:
    """`motet config show` says so, though the settings have a section there."""
    asked = {"a": ["one", "two"], "b": ["odd", "odd-b"], "c": ["half"]}
    origins = {name: origin for name, _, origin in configuration(folder, {"families": asked}).origins()}
    assert origins["engine.families.a.models"] == "file"


@given(st.lists(st.tuples(st.integers(1, 10**12), st.none() | st.floats(0.01, 0.19)), min_size=1, max_size=5))
def test_shares_are_parts_of_the_whole(entries: list[tuple[int, float | None]]) -> None:
    """What is given is kept, the rest is divided by the costs."""
    families = [Family(str(i), (f"m{i}",), "v", "float32", memory) for i, (_, memory) in enumerate(entries)]
    costs = {str(i): cost for i, (cost, _) in enumerate(entries)}
    parts = shares(families, costs)
    assert {name: parts[name] for name in parts if families[int(name)].memory is not None} == {
        family.name: family.memory for family in families if family.memory is not None
    }
    others = [family.name for family in families if family.memory is None]
    if others:
        assert sum(parts.values()) == pytest.approx(1)
        for name in others:
            assert parts[name] * costs[others[0]] == pytest.approx(parts[others[0]] * costs[name])


def test_weights_with_two_names_cost_once() -> None:
    families = [Family("f", ("a", "b", "c"), "v", "float32"), Family("g", ("d",), "w", "float32")]
    sources, costs = {"a": "x", "b": "y", "c": "x", "d": "z"}, {"a": 5, "b": 7, "c": 5, "d": 2}
    assert per_family(families, sources, costs) == {"f": 12, "g": 2}
    assert per_family(families, sources, costs, draft="b") == {"f": 19, "g": 2}, "a draft is loaded beside its family"


def test_a_model_drafts_for_its_own_family() -> None:
    options: dict[str, Any] = {"enforce_eager": True, "speculative_config": {"model": "small"}}
    assert for_models(options, ("large", "small")) == options
    assert for_models(options, ("other",)) == {"enforce_eager": True}
    repeated = {"speculative_config": {"method": "ngram"}}
    assert for_models(repeated, ("other",)) == repeated


def test_the_listing_says_what_a_token_costs_in_each_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values of one layer of width 16; `one` and `two` are one set of weights."""
    print_models(configuration(folder))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "one,", "two", "float32", "128"] in lines
    assert ["half", "half", "bfloat16", "64"] in lines


def test_every_family_is_exported_to_a_folder(folder: Path, tmp_path: Path) -> None:
    commands = export(configuration(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["half", "odd", "one"]
    for name, command, dtype, port in zip(
        ("one", "odd", "half"), commands, ("float32", "float32", "bfloat16"), (8000, 8001, 8002), strict=True
    ):
        assert f"--model {tmp_path / 'out' / name} " in command
        assert f"--dtype {dtype} " in command
        assert command.endswith(f"--port {port}")
        composite = yaml.safe_load((tmp_path / "out" / name / "config.json").read_text())
        assert name in composite["members"]
        assert composite["vocab_size"] == (261 if name == "odd" else 260)
        assert (tmp_path / "out" / name / "tokenizer.json").is_file()


TOKENIZER = byte_tokenizer()
NAMES = ("large", "small", "other", "half", "apart")
FAMILIES = [
    Family("first", ("large", "small"), "v", "float32"),
    Family("second", ("other",), "w", "float32"),
    Family("third", ("half",), "v", "bfloat16"),
    Family("fourth", ("apart",), "v", "float32"),
]


def engines() -> dict[str, FakeEngine]:
    return {
        family.name: FakeEngine({name: fake_info(name, TOKENIZER) for name in family.models}, steps=number)
        for number, family in enumerate(FAMILIES, 1)
    }


def contrast(base: str, amateur: str) -> Plan:
    written = {"strategy": "contrastive", "base": base, "amateur": amateur}
    return build_plan(parse_composition(written), None, known=NAMES, token_id=lambda _: None)


def asked(plan: Plan) -> GenerationRequest:
    return GenerationRequest("r", plan, ((1,),) * len(plan.streams), SamplingParams(max_tokens=3, temperature=0.0))


async def test_a_request_goes_to_the_engine_of_its_models() -> None:
    parts = engines()
    engine = Families(FAMILIES, parts)
    assert tuple(engine.models) == NAMES
    for plan, home in ((single("half"), "third"), (contrast("small", "large"), "first")):
        assert engine.supports(plan) is None
        engine.check(asked(plan))
        assert len([output async for output in engine.generate(asked(plan))]) == 3
        assert [request.plan for request in parts[home].requests] == [plan]
    assert sum(len(part.requests) for part in parts.values()) == 2


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (contrast("large", "other"), "'large' and 'other' .* their vocabularies differ"),
        (contrast("large", "half"), "one is float32, the other bfloat16"),
        (contrast("apart", "large"), "engine.families puts them in 'fourth' and 'first'"),
        (single("lage"), "'lage' is not loaded; did you mean 'large'"),
    ],
)
def test_no_engine_is_asked_for_models_that_it_does_not_hold(plan: Plan, reason: str) -> None:
    parts = engines()
    engine = Families(FAMILIES, parts)
    with pytest.raises(UnsupportedRequest, match=reason):
        engine.generate(asked(plan))
    assert not any(part.requests for part in parts.values())


async def test_numbers_add_up_and_all_engines_close() -> None:
    parts = engines()
    engine = Families(FAMILIES, parts)
    running = engine.generate(asked(single("large")))
    assert (await anext(running)).choice == 0
    stats = engine.stats()
    assert (stats.running, stats.steps, stats.kv_bytes_budget) == (1, 1 + 2 + 3 + 4 + 1, 4 << 20)
    assert dict(stats.forward_seconds) == dict.fromkeys(NAMES, 0.5)
    await engine.close()
    assert all(part.closed for part in parts.values())
    with pytest.raises(EngineError, match="stopped"):
        await anext(running)


async def test_one_engine_that_died_asks_for_a_restart_and_the_others_answer() -> None:
    parts = engines()
    engine = Families(FAMILIES, parts)
    assert engine.is_alive
    parts["second"].closed = True
    assert not engine.is_alive
    outputs = await asyncio.wait_for(anext(engine.generate(asked(single("half")))), 5)
    assert outputs.token >= 0


def test_the_server_takes_them_for_one_engine() -> None:
    members = {name: fake_member(name, TOKENIZER) for name in NAMES}
    service = Service.assemble(ServerConfig(), Families(FAMILIES, engines()), Registry(members))
    assert service.kv_budget == 4 << 20
    assert "motet:engine_steps_total 10.0" in service.metrics.render().decode()


def test_gguf_files_are_converted_once_for_vllm(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_qwen(tokenizer), tokenizer)
    folder = converted_checkpoint(file, tmp_path / "cache")
    before, after = (load_weights(str(path), dtype="auto").state_dict() for path in (file, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_tokenizer(str(folder)).encode("a <|user|>") == tokenizer.encode("a <|user|>")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted_checkpoint(file, tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(file, tiny_qwen(tokenizer, seed=1), tokenizer)
    assert converted_checkpoint(file, tmp_path / "cache") != folder
