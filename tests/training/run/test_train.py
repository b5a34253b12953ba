"""Runs in process: what they leave, what they refuse, and that they do what the recipe says."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import torch as safetensors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from motet.experts.bundle import read_bundle
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.schema import HeadSpec
from motet.models.heads import read_head
from motet.training.loop import Loop, Schedule
from motet.training.policies import model as model_policies
from motet.training.recipe import Recipe
from motet.training.run.errors import RunError
from motet.training.run.folder import RunFolder
from motet.training.run.identity import models_hash
from motet.training.run.metrics import Metrics
from motet.training.run.session import Session
from motet.training.run.train import check, train
from tests.training.run.workshop import chatting, recipe, records, write_rows

LORA: dict[str, Any] = {"type": "lora", "r": 4}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.load_file(next(output.glob("*model.safetensors")))


def refused(chosen: Recipe, root: Path, **options: Any) -> list[str]:
    with pytest.raises(RunError) as caught:
        train(chosen, root=root, **options)
    return caught.value.problems


def test_a_run_leaves_a_servable_folder(root: Path, tmp_path: Path) -> None:
    card = {"role": "expert", "strategy": "proxy_tuning", "partner": "base", "weight": 1.0, "weight_range": [0.5, 2]}
    chosen = recipe(tmp_path / "expert", schedule={"steps": 60, "warmup": 4}, expert=card, seed=4)
    reports: list[Metrics] = []
    assert train(chosen, root=root, progress=reports.append) == tmp_path / "expert"
    assert reports[-1].loss < 0.7 * reports[0].loss
    bundle = read_bundle(chosen.output)
    assert bundle is not None
    assert (bundle.name, bundle.objective, bundle.seed, bundle.weight_range) == ("expert", "sft", 4, (0.5, 2))
    assert bundle.partner is not None
    assert bundle.partner.weights == weights_fingerprint(root / "base")
    assert bundle.data_hash is not None
    model: Any = AutoModelForCausalLM.from_pretrained(chosen.output)
    assert isinstance(model(torch.tensor([[0, 5]])).logits, torch.Tensor)
    assert len(cast(Any, AutoTokenizer).from_pretrained(chosen.output)) == bundle.vocab_size
    assert Recipe.model_validate(yaml.safe_load((chosen.output / "recipe.yaml").read_text())) == chosen
    lines = [json.loads(line) for line in (chosen.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0].keys() == {"step", "loss", "parts", "lr", "tokens_per_second", "grad_norm", "seconds"}
    assert str(tmp_path) not in (chosen.output / "expert.json").read_text()
    assert not [item for item in chosen.output.iterdir() if item.name.startswith(".") or item.is_dir()]


def test_the_same_seed_gives_the_same_weights(root: Path, tmp_path: Path) -> None:
    tuning = {**LORA, "dropout": 0.3}
    runs = [train(recipe(tmp_path / f"run{i}", tuning=tuning, seed=i // 2), root=root) for i in range(3)]
    first, again, other = map(weights, runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_finished_run_leaves_no_model_in_memory(root: Path, tmp_path: Path) -> None:
    """A model lies in cycles: without the collector, who trains several would hold them all."""

    def models() -> int:
        return sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects())

    gc.collect()
    before = models()
    gc.disable()
    try:
        train(recipe(tmp_path / "run", tuning=LORA), root=root)
        assert models() == before
    finally:
        gc.enable()


def test_an_adapter_finds_its_base_from_its_own_folder(root: Path, tmp_path: Path) -> None:
    output = train(recipe(tmp_path / "deep" / "adapter", tuning=LORA), root=root)
    config = json.loads((output / "adapter_config.json").read_text())
    assert (output / config["base_model_name_or_path"]).resolve() == root / "base"
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    adapted: Any = PeftModel.from_pretrained(base, output)
    merged = train(recipe(tmp_path / "merged", tuning={**LORA, "merge": True}), root=root)
    whole: Any = AutoModelForCausalLM.from_pretrained(merged)
    ids = torch.arange(3, 20)[None]
    assert torch.allclose(adapted(ids).logits, whole(ids).logits, atol=1e-5)


def test_half_fine_tuning_in_one_round_keeps_half_of_the_tensors(root: Path, tmp_path: Path) -> None:
    output = train(recipe(tmp_path / "half", tuning={"type": "half", "rounds": 1}), root=root)
    before, after = safetensors.load_file(root / "base" / "model.safetensors"), weights(output)
    kept = sum(torch.equal(before[name], after[name]) for name in after)
    assert abs(kept - len(after) / 2) <= 1


def test_a_cut_and_a_fresh_model(root: Path, tmp_path: Path) -> None:
    cut = train(recipe(tmp_path / "cut", model={"path": "base", "layers": 1}), root=root)
    assert AutoModelForCausalLM.from_pretrained(cut).config.num_hidden_layers == 1
    bundle = read_bundle(cut)
    assert bundle is not None
    assert bundle.base is not None
    assert bundle.base.layers == 1
    shape = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    fresh = train(recipe(tmp_path / "fresh", model={"fresh": shape, "tokenizer": "base"}), root=root)
    bundle = read_bundle(fresh)
    assert bundle is not None
    assert bundle.base is None


def test_the_loss_through_a_composition_trains_the_small_model_alone(root: Path, tmp_path: Path) -> None:
    through = {"strategy": "product", "members": [{"model": "other", "weight": 1}, {"model": "trained", "weight": 1}]}
    members = {"other": {"path": "other"}}
    composed = weights(train(recipe(tmp_path / "a", through=through, members=members), root=root))
    alone = weights(train(recipe(tmp_path / "b"), root=root))
    assert any(not torch.equal(composed[name], alone[name]) for name in alone)


def test_a_distillation_stores_its_teacher_and_ends_near_it(root: Path, tmp_path: Path) -> None:
    chosen = recipe(
        tmp_path / "student",
        objective={"type": "distill", "teacher": "teacher", "top_k": 16},
        members={"teacher": {"path": "other"}},
        schedule={"steps": 60, "warmup": 5},
    )
    stored: list[bool] = []
    reports: list[Metrics] = []

    def watch(metrics: Metrics) -> None:
        stored.append((chosen.output / "teacher" / "teacher.json").is_file())
        reports.append(metrics)

    train(chosen, root=root, progress=watch)
    assert all(stored)
    assert not (chosen.output / "teacher").exists()
    assert reports[-1].parts["kl"] < 0.5 * reports[0].parts["kl"]


def test_a_head_is_saved_beside_the_model(root: Path, tmp_path: Path) -> None:
    gate = {"type": "gate", "assistant": "other", "initial_steps": 3}
    output = train(recipe(tmp_path / "gate", objective=gate, members={"other": {"path": "other"}}), root=root)
    head = safetensors.load_file(output / "head.safetensors")
    assert head["linear.weight"].shape == (1, 16)
    assert head["linear.weight"].abs().max() > 0
    bundle = read_bundle(output)
    assert bundle is not None
    assert "head.safetensors" in bundle.files
    assert bundle.head == HeadSpec(kind="gate")
    assert bundle.head is not None
    served = read_head(output, bundle.head.made(16)).state_dict()
    assert all(torch.equal(served[name], tensor) for name, tensor in head.items())
    with pytest.raises(ValueError, match="the head of this model has"):
        read_head(output, bundle.head.made(17))


def test_accumulated_micro_batches_are_one_large_batch(root: Path, tmp_path: Path) -> None:
    """Rows have different numbers of targets: a mean of means would be another gradient."""
    moved: list[list[torch.Tensor]] = []
    for accumulate in (1, 2, 4):
        chosen = recipe(tmp_path / "none", batch={"rows": 8, "accumulate": accumulate})
        session = Session(chosen, root=root)
        counted = {len(session.data(0, micro)["train"].targets) for micro in range(accumulate)}
        assert accumulate == 1 or len(counted) > 1
        sgd = torch.optim.SGD(session.parameters.values(), lr=1.0)
        Loop([sgd], Schedule(1, 0, 0), session.loss, session.preparation.source.micro_batches).step(0)
        moved.append([parameter.detach() for parameter in session.parameters.values()])
    for other in moved[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(moved[0], other, strict=True))


def test_a_loss_that_is_not_finite_ends_the_run(root: Path, tmp_path: Path) -> None:
    chosen = recipe(
        tmp_path / "run",
        optimizer={"type": "adamw", "lr": 1e30},
        schedule={"steps": 20, "warmup": 0},
        checkpoints={"every": 1, "keep": 50},
    )
    (problem,) = refused(chosen, root)
    assert problem.startswith("training diverged: loss nan after")
    assert not (chosen.output / "expert.json").exists()


def test_everything_that_is_wrong_is_told_together(root: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": ""}, {"prompt": 3, "completion": "b"}])
    (tmp_path / "file").write_text("")
    chosen = recipe(
        tmp_path / "file" / "run",
        data={"train": {"files": [str(tmp_path / "bad.jsonl")]}, "retain": {"files": ["train.jsonl"]}},
        members={"trained": {"path": "othr"}},
        through={"strategy": "proxy_tuning", "base": "big", "expert": "trained", "antiexpert": "other"},
        expert={"strategy": "proxy_tuning", "role": "exprt"},
        model={"path": "base", "layers": 1},
        tuning=LORA,
    )
    told = refused(chosen, root)
    for start in (
        "data.retain: the objective 'sft' reads no such dataset",
        "members.trained: the name belongs to the trained model",
        "tuning.merge: must be true",
        f"members.trained.path: {root / 'othr'} does not exist. Did you mean 'other'?",
        "through.base: unknown model 'big'",
        f"{tmp_path / 'bad.jsonl'}:1",
        f"{tmp_path / 'bad.jsonl'}:2",
        "expert: 'exprt' is no role of the strategy 'proxy_tuning'",
        f"output: {tmp_path / 'file'} is a file",
    ):
        assert any(problem.startswith(start) for problem in told), (start, told)


def test_a_missing_partner_is_refused(root: Path, tmp_path: Path) -> None:
    (problem,) = refused(recipe(tmp_path / "run", expert={"partner": "othr"}), root)
    assert problem == f"expert.partner: {root / 'othr'} does not exist. Did you mean 'other'?"


def test_tensorboard(root: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = train(recipe(tmp_path / "run", logging={"every": 2, "tensorboard": True}), root=root)
    events: Any = EventAccumulator(str(output / "tensorboard")).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in scalars] == [2, 4, 6]
    assert [value for _, value in scalars] == pytest.approx([line["loss"] for line in lines], rel=1e-6)


def test_roles_that_do_not_fit_are_refused_before_training(root: Path, tmp_path: Path) -> None:
    (problem,) = refused(recipe(tmp_path / "run", expert={"strategy": "proxy_tuning", "role": "exprt"}), root)
    assert problem.startswith("expert: 'exprt' is no role of the strategy 'proxy_tuning'")


def test_data_is_judged_where_the_model_is_missing(root: Path, tmp_path: Path) -> None:
    told = refused(recipe(tmp_path / "run", model={"path": "bse"}, data={"train": {"files": ["none.jsonl"]}}), root)
    assert len(told) == 2
    assert "Did you mean 'base'?" in told[0]
    assert "none.jsonl" in told[1]


def test_a_members_vocabulary_must_be_the_same(root: Path, tmp_path: Path) -> None:
    tokenizer = cast(Any, AutoTokenizer).from_pretrained(root / "base")
    tokenizer.add_tokens(["extra"])
    model: Any = AutoModelForCausalLM.from_pretrained(root / "base")
    model.save_pretrained(tmp_path / "wider")
    tokenizer.save_pretrained(tmp_path / "wider")
    chosen = recipe(tmp_path / "run", members={"wide": {"path": str(tmp_path / "wider")}})
    assert refused(chosen, root) == ["members.wide: its vocabulary is not the trained model's"]


def test_an_architecture_that_cannot_be_packed_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaks(model: object, **lengths: object) -> bool:
        return False

    monkeypatch.setattr(model_policies, "_isolates", leaks)
    chosen = recipe(tmp_path / "run", tuning=LORA, batch={"rows": 4, "packing": "fit", "max_length": 64})
    (problem,) = refused(chosen, root)
    assert problem.startswith("batch.packing: LlamaForCausalLM: tokens of this architecture see other documents")


class TestFolders:
    """A folder is one run's."""

    def test_a_finished_run_is_not_overwritten(self, root: Path, tmp_path: Path) -> None:
        chosen = recipe(tmp_path / "run")
        train(chosen, root=root)
        before = {file.name: file.read_bytes() for file in chosen.output.iterdir()}
        for existing in ("refuse", "resume"):
            (problem,) = refused(chosen, root, existing=existing)
            assert "holds a finished run; --restart replaces it" in problem
        assert before == {file.name: file.read_bytes() for file in chosen.output.iterdir()}

    def test_restart_replaces_the_run_and_nothing_else(self, root: Path, tmp_path: Path) -> None:
        chosen = recipe(tmp_path / "run")
        train(chosen, root=root)
        (chosen.output / "notes.txt").write_text("mine")
        train(recipe(tmp_path / "run", tuning=LORA), root=root, existing="restart")
        assert (chosen.output / "notes.txt").read_text() == "mine"
        assert (chosen.output / "adapter_model.safetensors").is_file()
        assert not (chosen.output / "model.safetensors").exists()

    def test_what_a_kill_left_of_a_result_is_cleared(self, root: Path, tmp_path: Path) -> None:
        chosen = recipe(tmp_path / "run", tuning=LORA)
        self.leave_unfinished(chosen, root)
        (chosen.output / ".result-abc").mkdir()
        (chosen.output / "model.safetensors").write_text("of an earlier run")
        train(chosen, root=root, existing="restart")
        assert not (chosen.output / ".result-abc").exists()
        assert not (chosen.output / "model.safetensors").exists()

    def test_other_files_are_left_alone(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        for existing in ("refuse", "restart"):
            assert refused(recipe(tmp_path), root, existing=existing) == [
                f"output: {tmp_path} holds files that are no run's; choose another folder"
            ]

    def test_an_unfinished_run_wants_a_decision(self, root: Path, tmp_path: Path) -> None:
        chosen = recipe(tmp_path / "run")
        self.leave_unfinished(chosen, root)
        (problem,) = refused(chosen, root)
        assert "an unfinished run of this recipe: --resume goes on, --restart begins anew" in problem
        train(chosen, root=root, existing="resume")

    def test_only_the_same_recipe_and_data_can_be_resumed(self, root: Path, tmp_path: Path) -> None:
        self.leave_unfinished(recipe(tmp_path / "run"), root)
        faster = recipe(tmp_path / "run", optimizer={"type": "adamw", "lr": 0.5})
        (problem,) = refused(faster, root, existing="resume")
        assert "that differs: optimizer.lr: 0.003 → 0.5; --restart replaces it" in problem
        renamed = recipe(tmp_path / "run", name="new", logging={"every": 3})
        check(renamed, root, root=root, output=renamed.output, existing="resume")

    def test_a_faulty_recipe_over_an_unfinished_run(self, root: Path, tmp_path: Path) -> None:
        self.leave_unfinished(recipe(tmp_path / "run"), root)
        told = refused(recipe(tmp_path / "run", model={"path": "bse"}), root)
        assert len(told) == 2
        assert "--resume goes on" in told[1]

    def test_changed_data_cannot_be_resumed(self, root: Path, tmp_path: Path) -> None:
        data = tmp_path / "own.jsonl"
        write_rows(data, list(records()))
        chosen = recipe(tmp_path / "run", data={"train": {"files": [str(data)]}})
        self.leave_unfinished(chosen, root)
        write_rows(data, list(records()[:-1]))
        (problem,) = refused(chosen, root, existing="resume")
        assert "that differs: the content of the data;" in problem

    def test_two_processes_do_not_share_a_folder(self, root: Path, tmp_path: Path) -> None:
        chosen = recipe(tmp_path / "run")
        other = RunFolder(chosen.output, chosen, {})
        other.open("refuse")
        try:
            assert refused(chosen, root, existing="restart") == [
                f"output: another process is training in {chosen.output}"
            ]
        finally:
            other.close()

    def test_a_folder_that_cannot_be_made(self, root: Path) -> None:
        (problem,) = refused(recipe(Path("/proc/motet/run")), root)
        assert problem.startswith("output: /proc")
        assert "writ" in problem

    @staticmethod
    def leave_unfinished(chosen: Recipe, root: Path) -> None:
        class Stop(Exception):
            pass

        def stop(metrics: Metrics) -> None:
            raise Stop

        with pytest.raises(Stop):
            train(chosen, root=root, progress=stop)


@pytest.mark.parametrize("tuning", [{"type": "full"}, LORA])
def test_the_result_ends_where_its_training_data_end(tmp_path: Path, tuning: dict[str, Any]) -> None:
    hf = chatting(tmp_path)
    generation = tmp_path / "base" / "generation_config.json"
    # as older checkpoints have it: sampling without saying so
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "temperature": 0.9, "top_p": 0.6}))
    train(recipe(tmp_path / "out", tuning=tuning, batch={"rows": 2}), root=tmp_path)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert hf.convert_tokens_to_ids("<|im_end|>") in written["eos_token_id"]
    assert hf.eos_token_id in written["eos_token_id"]
    assert hf.convert_tokens_to_ids("<|im_start|>") not in written["eos_token_id"]


def test_validation_that_would_not_be_measured_is_refused(root: Path, tmp_path: Path) -> None:
    data = {name: {"files": ["train.jsonl"]} for name in ("train", "validation")}
    with pytest.raises(RunError, match=r"data.validation: self-play makes its own pairs"):
        train(recipe(tmp_path / "run", objective={"type": "spin"}, data=data), root=root)


def test_a_distillation_is_measured_by_a_teacher_of_the_validation(root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    data = {"train": {"files": ["train.jsonl"], "limit": 8}, "validation": {"files": ["train.jsonl"], "limit": 11}}
    distill = {"type": "distill", "teacher": "other", "top_k": 3}
    chosen = recipe(tmp_path / "run", objective=distill, data=data, members={"other": {"path": "other"}})
    train(chosen, root=root, report=lines.append)
    assert any(line.startswith("validation ") for line in lines)


def test_labels_of_the_validation_are_those_of_training(root: Path, tmp_path: Path) -> None:
    for name, labels in (("learnt", "ab"), ("held", "bc")):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "a red house", "label": label} for label in labels])
    files = {"train": "learnt", "validation": "held"}
    data = {name: {"files": [str(tmp_path / f"{file}.jsonl")]} for name, file in files.items()}
    chosen = recipe(tmp_path / "run", objective={"type": "gedi", "prompts": ["x", "y"]}, data=data)
    with pytest.raises(RunError, match=r"data.validation: its labels must be those of the training data: 'a', 'b'"):
        train(chosen, root=root)


def test_another_gguf_file_is_another_start(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "run", model={"path": "base.gguf"})
    hashes: set[str] = set()
    for content in (b"GGUF one", b"GGUF two", b"GGUF two"):
        (tmp_path / "base.gguf").write_bytes(content)
        hashes.add(models_hash(chosen, tmp_path))
    assert len(hashes) == 2


@pytest.mark.parametrize("batch", [{"rows": 8, "accumulate": 4}, {"rows": 2}])
def test_kto_never_reads_one_document_alone(root: Path, tmp_path: Path, batch: dict[str, int]) -> None:
    """Nine records do not go evenly into steps, micro-batches, and the validation's batches."""
    rows = [{**row, "label": number % 2 == 0} for number, row in enumerate(records()[:9])]
    write_rows(tmp_path / "nine.jsonl", rows)
    write_rows(tmp_path / "one.jsonl", rows[:1])
    nine, one = ({"files": [str(tmp_path / f"{name}.jsonl")]} for name in ("nine", "one"))
    made = {"objective": {"type": "kto"}, "batch": batch, "schedule": {"epochs": 1 if batch["rows"] == 2 else 3}}
    lines: list[str] = []
    train(recipe(tmp_path / "run", data={"train": nine, "validation": nine}, **made), root=root, report=lines.append)
    assert any(line.startswith("validation ") for line in lines)
    told = refused(recipe(tmp_path / "few", data={"train": one, "validation": one}, **made), root)
    assert told == [
        f"data.{name}: kto compares records with each other and needs 2 at least, got 1"
        for name in ("train", "validation")
    ]


def test_an_output_that_cannot_be_written_is_found_before_training(root: Path) -> None:
    """Permissions alone say nothing to root: it is tried."""
    for folder in ("/proc/motet", "/sys/motet"):
        with pytest.raises(RunError, match=r"output: .* is not writable"):
            check(recipe(Path(folder)), root, output=Path(folder))
