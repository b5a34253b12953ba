"""The bundle: what is written is read back, what is wrong is refused with all its reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import torch as tensor_files

from motet.composers.roles import field_names
from motet.composers.spec import parse_composition
from motet.composers.strategies import STRATEGIES
from motet.experts.bundle import BundleError, ExpertBundle, ModelReference, fingerprint, read_bundle, write_bundle
from motet.experts.fingerprints import SAMPLE, weights_fingerprint
from motet.experts.roles import role_names
from motet.experts.schema import HeadSpec
from tests.fakes import byte_tokenizer

DIGEST = "0" * 64


def save_file(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    tensor_files.save_file(tensors, file, metadata)


def bundle(**fields: Any) -> ExpertBundle:
    given_fields: dict[str, Any] = {
        "name": "tiny-chat",
        "objective": "sft",
        "tokenizer_fingerprint": DIGEST,
        "vocab_size": 7,
        "partner": {"path": "tiny"},
        "strategy": "proxy_tuning",
        "weight": 1.0,
        "weight_range": (0.5, 1.5),
    }
    return ExpertBundle.model_validate(given_fields | fields)


def edited(folder: Path, **fields: Any) -> Path:
    tree = json.loads((folder / "expert.json").read_text())
    (folder / "expert.json").write_text(json.dumps(tree | fields))
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    written = write_bundle(tmp_path, bundle(evaluation={"accuracy": 0.5}, seed=3, base_family="tiny"))
    assert read_bundle(tmp_path) == written
    assert set(written.files) == {"config.json"}
    assert {"motet", "torch", "python"} <= set(written.versions)
    assert read_bundle(tmp_path / "elsewhere") is None


def test_a_second_writing_does_not_hash_the_first(tmp_path: Path) -> None:
    first = write_bundle(tmp_path, bundle(created="now"))
    assert write_bundle(tmp_path, bundle(created="now")) == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "expert.json"]


def test_the_card_has_front_matter_and_a_composition_that_parses(tmp_path: Path) -> None:
    write_bundle(tmp_path, bundle(base={"path": "tiny", "layers": 2}, evaluation={"gap closed": 0.9731}))
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "tiny"
    assert "first 2 layers" in body
    assert "| gap closed | 0.9731 |" in body
    composition = json.loads(body.split("```json\n")[1].split("```")[0])["composition"]
    parse_composition(composition)
    assert composition == {"strategy": "proxy_tuning", "expert": "tiny-chat", "antiexpert": "tiny", "alpha": 1.0}


def test_an_adapters_card_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    write_bundle(tmp_path, bundle(base={"path": "tiny"}))
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")


def test_a_newer_format_is_refused_without_complaints_about_its_fields(tmp_path: Path) -> None:
    write_bundle(tmp_path, bundle())
    with pytest.raises(BundleError, match="format 2, this version reads formats up to 1: update motet") as refusal:
        read_bundle(edited(tmp_path, format=2, new_field=1))
    assert len(refusal.value.problems) == 1


def test_all_that_is_wrong_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path, bundle())
    with pytest.raises(BundleError) as refusal:
        read_bundle(edited(tmp_path, colour="red", vocab_size=0, weight=1e9))
    for field in ("colour", "vocab_size", "weight"):
        assert any(f"expert.json: {field}: " in problem for problem in refusal.value.problems)


def test_a_file_that_is_no_bundle(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "expert.json").write_text(text)
        with pytest.raises(BundleError, match=r"expert\.json"):
            read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role": "antiexprt"}, "Did you mean 'antiexpert'"),
        ({"strategy": "proxy_tunin"}, "Did you mean 'proxy_tuning'"),
        ({"weight": 2.0}, "outside of weight_range"),
        ({"weight_range": (2.0, 1.0)}, "ends before it begins"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        bundle(**fields)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("/home/me/models/small", "small"),
        ("~/models/small", "small"),
        ("C:\\models\\small", "small"),
        ("../small", "../small"),
        ("org/small", "org/small"),
    ],
)
def test_folders_of_the_training_machine_are_not_kept(written: str, kept: str) -> None:
    assert ModelReference(path=written).path == kept


ROUTER = {"top": 5, "width": 8, "blocks": 1, "threshold": 0.4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "gate", "least": 0.1}, "a gate has no least and most"),
        ({"kind": "temperature"}, "must enclose 1, got None and None"),
        ({"kind": "strength", "least": 1.0, "most": 2.0}, "must enclose 1, got 1.0 and 2.0"),
        ({"kind": "temperature", "least": 0.0, "most": 2.0}, "must be above 0"),
        ({"kind": "ruoter"}, "'gate', 'router', 'temperature', 'strength' or 'similarity'"),
        ({"kind": "similarity"}, "a similarity has clusters, and no other head has"),
        ({"kind": "gate", "clusters": ("a", "b")}, "a similarity has clusters, and no other head has"),
        ({"kind": "similarity", "clusters": ("a", "a")}, "names of their own, got a, a"),
        ({"kind": "similarity", "clusters": tuple("abcdefghi")}, "at most 8 items"),
        ({"kind": "router", "top": 5, "width": 8, "blocks": 1}, "missing: threshold"),
        ({"kind": "router", "least": 0.1, **ROUTER}, "a router has no least and most"),
        ({"kind": "router", **ROUTER, "width": 1 << 20}, "less than or equal to 8192"),
        ({"kind": "gate", "threshold": 0.3}, "a gate has no threshold, as a router has"),
    ],
)
def test_heads_that_cannot_be_served(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadSpec(**fields)


def test_a_head_is_read_back_and_on_the_card(tmp_path: Path) -> None:
    head = HeadSpec(kind="strength", least=0.0, most=2.0)
    write_bundle(tmp_path, bundle(head=head))
    found = read_bundle(tmp_path)
    assert found is not None
    assert found.head == head
    assert "| head | `strength`, in `head.safetensors` |" in (tmp_path / "README.md").read_text("utf-8")


def test_partner_roles_are_roles() -> None:
    pairs = {name: kind.partners for name, kind in STRATEGIES.items() if kind.partners is not None}
    assert set(pairs) >= {"proxy_tuning", "dynamic", "budget", "eft", "novelty", "unlearn", "generic"}
    for strategy, pair in pairs.items():
        assert set(pair) <= set(role_names(strategy)), f"partners of {strategy!r} are no roles of it"
    assert role_names("eft") == ("base", "tuned", "reference")
    assert all("base" in role_names(strategy) for strategy in STRATEGIES)


def test_a_strength_is_a_field_and_no_threshold() -> None:
    """`alpha` is the strength of some strategies and the mask's threshold of others."""
    for kind in STRATEGIES.values():
        is_field = kind.strength is None or kind.strength in field_names(kind).values()
        assert is_field, f"strength of {kind.__name__} is no field of it: {kind.strength!r}"
    assert (STRATEGIES["contrastive"].strength, STRATEGIES["novelty"].strength) == ("beta", "lambda")


def test_a_tokenizers_fingerprint_is_its_folders(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer().hf
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(tokenizer) == fingerprint(tmp_path) != fingerprint(byte_tokenizer(extra=["zz"]).hf)


@given(st.data())
def test_weights_of_the_same_tensors_have_one_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """However they are spread over files; one value, name, type or shape of another kind changes it."""
    folders = [tmp_path_factory.mktemp("weights") for _ in range(3)]
    tensors = {name: torch.randn(3, 4) for name in ("a", "b", "c")}
    split = data.draw(st.integers(1, 2))
    names = list(tensors)
    save_file(tensors, folders[0] / "model.safetensors")
    for i, part in enumerate((names[:split], names[split:])):
        save_file({name: tensors[name] for name in part}, folders[1] / f"model-{i}.safetensors", {"made": "by us"})
    name = data.draw(st.sampled_from(names))
    change = data.draw(st.sampled_from(["value", "name", "type", "shape"]))
    other = tensors.pop(name)
    changed = {
        "value": other + torch.eye(3, 4) * (other.abs() + 1),
        "type": other.half(),
        "shape": other.reshape(4, 3).contiguous(),
    }
    save_file(tensors | {name + "x" * (change == "name"): changed.get(change, other)}, folders[2] / "model.safetensors")
    first, second, third = (weights_fingerprint(folder) for folder in folders)
    assert first == second != third


def test_both_ends_of_a_long_tensor_count(tmp_path: Path) -> None:
    found: set[str | None] = set()
    for i, place in enumerate((None, 0, -1)):
        long = torch.zeros(SAMPLE)
        if place is not None:
            long[place] = 1
        (tmp_path / str(i)).mkdir()
        save_file({"w": long}, tmp_path / str(i) / "model.safetensors")
        found.add(weights_fingerprint(tmp_path / str(i)))
    assert len(found) == 3


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    assert weights_fingerprint(tmp_path) is None
    for junk in (b"", b"\xff" * 100, (20).to_bytes(8, "little") + b"x" * 20, (9).to_bytes(8, "little") + b'{"a": {}}'):
        (tmp_path / "model.safetensors").write_bytes(junk)
        with pytest.raises(ValueError, match="is no safetensors file"):
            weights_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    assert weights_fingerprint(tmp_path) is not None
