"""A classifier's probability against the formula in float64, its windows against their definition, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from motet.models.classifier import MULTI_LABEL, Classifier, TextTooLong
from tests.classifiers import CONTEXT, LABELS, SEP, expected, save_classifier
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

WANTED = ("forget", "risky")
SAFETENSORS: Any = safetensors.torch


@pytest.fixture(scope="module", params=["bert", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier") / request.param, request.param)


@pytest.mark.parametrize("text", ["Where is Ada?", "a", "x" * 29, "The whole of a text that no window holds. " * 4])
def test_the_probability_is_that_of_the_formula(folder: Path, text: str) -> None:
    classifier = Classifier.load(folder, WANTED)
    ids: list[int] = cast(Any, AutoTokenizer).from_pretrained(folder)(text)["input_ids"]
    windows = classifier.windows(text, 64)
    if len(ids) <= CONTEXT:
        assert windows == [ids]
    score = max(map(classifier.probability, windows))
    assert score == pytest.approx(expected(folder, windows, WANTED), abs=1e-5)
    assert 0 < score < 1


@given(st.text(alphabet="abcd ", min_size=1, max_size=300))
def test_windows_hold_all_of_a_text_and_overlap(any_classifier: Classifier, text: str) -> None:
    own = any_classifier
    ids, room = own.tokenizer.encode(text), own.room
    inner = [window[len(own.begin) : len(window) - len(own.end)] for window in own.windows(text, 64)]
    assert all(window[: len(own.begin)] == list(own.begin) for window in own.windows(text, 64))
    places = [0]
    for before, one in pairwise(inner):
        assert len(before) == len(one) == room
        step = min(room - room // 4, len(ids) - room - places[-1])
        places.append(places[-1] + step)
    assert inner == [ids[place : place + room] for place in places]
    assert places[-1] + len(inner[-1]) == len(ids)


@pytest.fixture(scope="module")
def any_classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(save_classifier(tmp_path_factory.mktemp("any") / "bert"), WANTED)


def test_what_has_more_windows_is_refused(any_classifier: Classifier) -> None:
    room = any_classifier.room
    assert len(any_classifier.windows("a" * room, 1)) == 1
    with pytest.raises(TextTooLong):
        any_classifier.windows("a" * (room + 1), 1)
    with pytest.raises(TextTooLong):
        any_classifier.windows("a" * (1 << 22), 64)


def test_special_tokens_in_a_text_are_letters(any_classifier: Classifier) -> None:
    """By a token that ends a text in training, its author could end what is judged."""
    (window,) = any_classifier.windows(f"a{SEP}b", 1)
    assert window.count(window[-1]) == 1


def test_one_label_of_a_multi_label_classifier_is_a_sigmoid(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "multi", problem_type=MULTI_LABEL)
    classifier = Classifier.load(folder, ["forget"])
    (window,) = classifier.windows("Ada", 1)
    with torch.no_grad():
        logit = float(classifier.model(input_ids=torch.tensor([window])).logits[0, 1])
    assert classifier.probability(window) == pytest.approx(1 / (1 + 2.718281828459045**-logit), abs=1e-6)
    with pytest.raises(ValueError, match="multi-label classifier, whose probabilities have no sum"):
        Classifier.load(folder, WANTED)


def no_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in SAFETENSORS.load_file(file).items() if not name.startswith("classifier")}
    SAFETENSORS.save_file(kept, file, {"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(SAFETENSORS.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('it was run')")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_head, "lacks or misshapes classifier.bias, classifier.weight: what decides was never trained"),
        (pickled, "has no safetensors"),
        (own_code, "code that it brings along"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = save_classifier(tmp_path / "classifier")
    damage(folder)
    with pytest.raises(ValueError, match=said):
        Classifier.load(folder, WANTED)


@pytest.mark.parametrize(
    ("labels", "context", "said"),
    [
        (["forgt"], None, "has no label 'forgt'. Did you mean 'forget'\\? Labels: harmless, forget, risky"),
        (LABELS, None, "these are all labels"),
        (WANTED, CONTEXT + 1, "33 is more than the 32 positions"),
    ],
)
def test_labels_and_context_are_checked(tmp_path: Path, labels: list[str], context: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Classifier.load(save_classifier(tmp_path / "classifier"), labels, context)


def test_other_models_are_no_classifiers(tmp_path: Path) -> None:
    save_with(tmp_path / "causal", byte_tokenizer())
    with pytest.raises(ValueError, match="LlamaForCausalLM is no sequence classifier"):
        Classifier.load(tmp_path / "causal", WANTED)
    with pytest.raises(ValueError, match="one label alone"):
        Classifier.load(save_classifier(tmp_path / "regression", labels=["score"]), ["score"])
