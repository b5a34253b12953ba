"""lm-eval scores through the server what it scores with its own Hugging Face backend."""

from __future__ import annotations

import json
import random
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

TASK = "demo_world"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, questions: list[dict[str, Any]]) -> Path:
    """A local multiple-choice task: held-out questions, the right value among two wrong ones."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    rows: list[str] = []
    for question in questions[:12]:
        values = sorted({other["answer"] for other in questions if other["attribute"] == question["attribute"]})
        wrong = rng.sample([value for value in values if value != question["answer"]] or ["Nobody knows."], 1)
        choices = [question["answer"], *wrong]
        rng.shuffle(choices)
        row = {"question": question["question"], "choices": choices, "label": choices.index(question["answer"])}
        rows.append(json.dumps(row))
    (folder / "questions.jsonl").write_text("\n".join(rows))
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Visitor: {{question}} Guide:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task))
    return folder


def evaluate(tasks: Path, cache: Path, backend: str, **arguments: Any) -> list[tuple[float, bool]]:
    """(log-likelihood, is greedy) of every continuation of every question."""
    lm_eval: Any = import_module("lm_eval")  # slow to import, and typed in parts only
    datasets_config: Any = import_module("datasets.config")
    datasets_config.HF_DATASETS_CACHE = cache
    manager = import_module("lm_eval.tasks").TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=[TASK],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        batch_size=4,
        device="cpu",
    )
    samples = cast("list[dict[str, Any]]", results["samples"][TASK])
    answers = [pair for sample in sorted(samples, key=lambda s: s["doc_id"]) for pair in sample["filtered_resps"]]
    return [(float(logprob), str(greedy) == "True") for logprob, greedy in answers]


@pytest.mark.filterwarnings("ignore")
def test_a_plain_model_scores_as_in_hugging_face(tasks: Path, family: Path, url: str, tmp_path: Path) -> None:
    expected = evaluate(tasks, tmp_path, "hf", pretrained=str(family / "large-chat"), dtype="float32")
    served = evaluate(
        tasks,
        tmp_path,
        "local-completions",
        model="large-chat",
        base_url=f"{url}/v1/completions",
        tokenizer=str(family / "large-chat"),
        num_concurrent=4,
    )
    assert len(served) == len(expected) >= 20
    for (ours, our_greedy), (theirs, their_greedy) in zip(served, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert our_greedy == their_greedy


@pytest.mark.filterwarnings("ignore")
def test_a_composition_scores(tasks: Path, family: Path, url: str, tmp_path: Path) -> None:
    """Through the server's own tokenizer endpoints; every stream reads the same prompt."""
    plain = evaluate(
        tasks,
        tmp_path,
        "local-completions",
        model="large-chat",
        base_url=f"{url}/v1/completions",
        tokenizer=str(family / "large-chat"),
    )
    composed = evaluate(
        tasks,
        tmp_path,
        "local-completions",
        model="large-unlearned",
        base_url=f"{url}/v1/completions",
        tokenizer_backend="remote",
    )
    assert len(composed) == len(plain)
    assert composed != plain
