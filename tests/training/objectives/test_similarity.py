"""The head of clusters from records to its tensors, against whole forwards and NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import torch as safetensors
from transformers import AutoModelForCausalLM, AutoTokenizer

from motet.experts.bundle import read_bundle
from motet.experts.schema import HeadSpec
from motet.training.objectives.similarity import Similarity
from motet.training.run.errors import RunError
from motet.training.run.train import train
from tests.training.run.workshop import build, recipe, records, write_rows

CLUSTERS = ["tower", "house", "river"]  # in another order than the alphabet's


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("clusters"))
    for thing in CLUSTERS:
        write_rows(folder / f"{thing}.jsonl", [row for row in records() if thing in row["prompt"]])
    return folder


def run(workshop: Path, output: Path, clusters: Sequence[str] = CLUSTERS, packing: str = "none", **data: Any) -> Path:
    files = {"files": [f"{name}.jsonl" for name in CLUSTERS], **data}
    made = recipe(
        output, objective={"type": "similarity_head", "clusters": list(clusters)}, data={"train": files},
        batch={"rows": 4, "packing": packing, "max_length": 64}, schedule={"steps": 1, "warmup": 0},
    )  # fmt: skip
    return train(made, root=workshop)


@torch.no_grad()
def features(workshop: Path, thing: str, template: str) -> np.ndarray:
    """(n, H) float64: the last hidden states behind a cluster's prompts, as a server renders them."""
    tokenizer = cast("Any", AutoTokenizer).from_pretrained(workshop / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(workshop / "base").eval()
    prompts = [row["prompt"] for row in records() if thing in row["prompt"]]
    ids = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]
        if template == "chat"
        else tokenizer(prompt)["input_ids"]
        for prompt in prompts
    ]
    told = [model(torch.tensor([own]), output_hidden_states=True) for own in ids]
    return np.stack([one.hidden_states[-1][0, -1].double().numpy() for one in told])


@pytest.mark.parametrize(("packing", "template"), [("none", "plain"), ("fit", "chat")])
def test_it_holds_means_and_standards_of_every_cluster(
    workshop: Path, tmp_path: Path, packing: str, template: str
) -> None:
    output = run(workshop, tmp_path / "out", packing=packing, template=template)
    bundle = read_bundle(output)
    assert bundle is not None
    assert bundle.head == HeadSpec(kind="similarity", clusters=tuple(CLUSTERS))
    head = {name: value.numpy() for name, value in safetensors.load_file(output / "head.safetensors").items()}
    assert set(head) == {"centroids", "mean", "deviation"}
    own: dict[str, np.ndarray] = {}
    for number, thing in enumerate(CLUSTERS):
        states = features(workshop, thing, template)
        centroid = states.mean(0)
        cosines = states @ centroid / np.linalg.norm(states, axis=1) / np.linalg.norm(centroid)
        np.testing.assert_allclose(head["centroids"][number], centroid, atol=1e-5)
        np.testing.assert_allclose(head["mean"][number], cosines.mean(), atol=1e-5)
        np.testing.assert_allclose(head["deviation"][number], cosines.std(), rtol=0.02)
        own[thing] = states
    share = bundle.evaluation["house: share of its own adapter"]
    units = [centroid / np.linalg.norm(centroid) for centroid in head["centroids"]]
    house = own["house"] / np.linalg.norm(own["house"], axis=1)[:, None]
    scores = np.exp([(house @ u - m) / s for u, m, s in zip(units, head["mean"], head["deviation"], strict=True)])
    assert share == pytest.approx((scores[1] / scores.sum(0)).mean(), abs=2e-3)
    untouched = AutoModelForCausalLM.from_pretrained(workshop / "base").state_dict()
    written = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert all(torch.equal(untouched[name], value) for name, value in written.items())
    assert "`similarity`, in `head.safetensors`: tower, house, river" in (output / "README.md").read_text()


def test_files_and_clusters_have_the_same_names(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"objective\.clusters: tower, hose; the files of data\.train are named house,"):
        run(workshop, tmp_path / "out", ["tower", "hose"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "all"}, "data.train.loss: all is for documents, these are clusters"),
        ({"format": "text"}, "data.train.format: text has no clusters; allowed: auto, messages, prompt_completion"),
    ],
)
def test_records_without_a_prompt_are_refused(
    workshop: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError) as refused:
        run(workshop, tmp_path / "out", **changes)
    assert said in str(refused.value)


@pytest.mark.parametrize("clusters", [[], ["a", "a"], [str(n) for n in range(9)]])
def test_clusters_that_no_composition_could_name(clusters: list[str]) -> None:
    with pytest.raises(ValidationError):
        Similarity.model_validate({"clusters": clusters})
