"""The load generator's arithmetic, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from motet_client.load.__main__ import main
from motet_client.load.report import percentile, summary
from motet_client.load.run import Measured
from motet_client.load.work import Target, jobs, read_mix, synthetic_prompts


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (50, 2.5), (75, 3.25), (100, 4.0)])
def test_percentiles(q: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], q) == value


def test_the_times_of_one_answer() -> None:
    """Three tokens at 1.0, 1.5 and 2.5 s of its due time, ended at 3.0 s; another was refused."""
    told = Measured("a", due=7.0, sent=0.25, pieces=[1.0, 1.5, 2.5], end=3.0, prompt_tokens=5, output_tokens=3)
    group = summary([told, Measured("b", due=8.0, end=0.5, error="429")], seconds=4.0)
    everything = group["all"]
    assert (everything["requests"], everything["answered"], everything["errors"]) == (2, 1, {"429": 1})
    assert everything["ttft_ms"]["p50"] == 1000
    assert everything["itl_ms"]["p50"] == 750
    assert everything["tpot_ms"]["p50"] == 1000
    assert everything["e2e_ms"]["p99"] == 3000
    assert everything["output_tokens_per_s"] == 0.75
    assert group["each"]["b"]["e2e_ms"] is None


def test_targets_are_drawn_by_weight_and_the_same_with_the_same_seed() -> None:
    targets = [Target("a", 3, {"model": "a"}), Target("b", 1, {"model": "b", "max_tokens": 2})]
    prompts = synthetic_prompts(400, (2, 5), seed=1)
    drawn = jobs(400, targets, prompts, (4, 8), {"temperature": 0}, seed=1)
    assert drawn == jobs(400, targets, prompts, (4, 8), {"temperature": 0}, seed=1)
    # Binomial(400, 3/4): the fixed seed's draw is inside ±5 standard deviations
    assert abs(sum(job.label == "a" for job in drawn) - 300) < 44
    assert {job.body["max_tokens"] for job in drawn if job.label == "b"} == {2}
    assert {job.body["max_tokens"] for job in drawn if job.label == "a"} == {4, 5, 6, 7, 8}


def test_a_mix(tmp_path: Path) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([{"model": "a", "composition": {"strategy": "guidance"}, "weight": 2}]))
    (target,) = read_mix(file)
    assert (target.label, target.weight) == ("a guidance", 2)
    assert target.body == {"model": "a", "composition": {"strategy": "guidance"}}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model NAME or --mix FILE"),
        (["--model", "a=x"], "'a=x'"),
        (["--model", "a=0"], "positive number"),
        (["--model", "a", "--prompts", "{folder}/prompts.jsonl"], "prompts.jsonl:2"),
        (["--mix", "{folder}/mix.json"], "entry 1"),
    ],
)
def test_bad_input_is_named(flags: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "mix.json").write_text('[{"weight": 1}]')
    with pytest.raises(SystemExit, match=said):
        main(["http://127.0.0.1:9/v1", *(flag.format(folder=tmp_path) for flag in flags)])
