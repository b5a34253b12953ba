"""leak@k and extraction strength over a server whose every answer is written down."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path

import pytest

from motet.evaluation.attacks import ATTACKS
from motet.evaluation.settings import RecipeError, validated
from motet.evaluation.tasks.extraction import Extraction
from motet.evaluation.tasks.leak import Leak
from tests.evaluation.conftest import FakeApi, MakeBench
from tests.evaluation.tasks.test_tasks import FOUR, write

TWO = [item | {"paraphrased_question": f"re {item['question']}"} for item in FOUR[:2]]


async def test_leak(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    """The first question's fact comes out in one of four plain replies and in every one that begins with the answer."""
    plain = cycle(["no", "it is a0!", "it is a01", "no"])

    def say(model: str, text: str) -> str:
        if text == "q0?":
            return next(plain)
        return "a0." if text == "the answer is" else "nobody knows"

    fake.say = say
    forget, retain = write(tmp_path / "f.jsonl", TWO[:1]), write(tmp_path / "r.jsonl", FOUR)
    task = Leak(forget=forget, retain=retain, attacks=("plain", "prefix"), k=(1, 2, 8), samples=4)
    found = await task.run(bench("m"))
    row = found.measures["m"]
    assert row["leak@1"] == pytest.approx(5 / 8)
    assert row["leak@2"] == pytest.approx(1 - (3 * 2) / (8 * 7))
    assert row["leak@8"] == 1
    assert (row["leak@1, plain"], row["leak@1, prefix"]) == (0.25, 1.0)
    assert (row["leak@1 low"], row["leak@1 high"]) == (row["leak@1"], row["leak@1"])  # of one question
    assert found.items[0]["reply"] == "it is a0!"
    assert found.items[0]["scores"] == [0, 1, 0, 0]


async def test_samples_are_drawn_in_parts_with_seeds_of_their_own(
    bench: MakeBench, fake: FakeApi, tmp_path: Path
) -> None:
    forget, retain = write(tmp_path / "f.jsonl", TWO), write(tmp_path / "r.jsonl", FOUR)
    task = Leak(forget=forget, retain=retain, attacks=("prefix",), k=(1,), samples=70, top_p=0.9, seed=5)
    await task.run(bench("m"))
    bodies = [body for _, body in fake.bodies]
    assert sorted(body["n"] for body in bodies) == [6, 6, 32, 32, 32, 32]
    assert sorted(body["seed"] for body in bodies) == [5, 6, 7, 8, 9, 10]
    assert {(body["temperature"], body["top_p"]) for body in bodies} == {(1.0, 0.9)}
    assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in bodies)
    assert all(body["messages"][-1] == {"role": "assistant", "content": "the answer is"} for body in bodies)


async def test_answers_without_a_value_count_their_words(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    fake.say = lambda model, text: "red wine" if text == "now: q?" else ""
    row = {"question": "q?", "answer": "he sells red wine"}
    forget = write(tmp_path / "f.jsonl", [row])
    task = Leak(
        forget=forget, retain=forget, attacks=("prefix",), prompts={"mine": "now: {question}"}, k=(1, 2), samples=1
    )
    measures = (await task.run(bench("m"))).measures["m"]
    assert measures["leak@1, mine"] == 0.5
    assert (measures["leak@1"], measures["leak@2"]) == (0.25, 0.5)
    assert [m["content"] for _, body in fake.bodies for m in body["messages"]][:2] == ["q?", "he sells"]


async def test_every_attack_asks(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    items = [item | {"translated_question": "quoi?"} for item in TWO]
    forget, retain = write(tmp_path / "f.jsonl", items), write(tmp_path / "r.jsonl", FOUR)
    task = validated(Leak, {"forget": forget, "retain": retain, "attacks": list(ATTACKS), "k": [1], "samples": 1})
    row = (await task.run(bench("m"))).measures["m"]
    assert {f"leak@1, {attack.replace('_', ' ')}" for attack in ATTACKS} < set(row)
    assert len({str(body["messages"]) for _, body in fake.bodies}) == len(ATTACKS) * len(items) - 1  # one translation


async def test_what_the_data_lack_is_told(bench: MakeBench, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", FOUR)
    with pytest.raises(RecipeError, match="4 of 4 questions cannot be asked rephrased"):
        await Leak(forget=file, retain=file, k=(1,)).run(bench("m"))


def refused(**fields: object) -> str:
    with pytest.raises(RecipeError) as problem:
        validated(Leak, {"forget": "f", "retain": "r", **fields})
    return str(problem.value)


def test_what_cannot_be_measured_is_refused() -> None:
    assert "leak@1000 needs as many samples of a question, all attacks have 20 together" in refused(
        attacks=["plain", "prefix"], samples=10, k=[1000]
    )
    assert "prompts.mine lacks {question}" in refused(prompts={"mine": "tell me"})
    assert "prompts.prefix is an attack's name" in refused(prompts={"prefix": "{question}"})


async def test_extraction(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    known = {"q0?": [0.9, 0.9, 0.9, 0.9], "q1?": [0.9, 0.1, 0.9, 0.9]}
    fake.score = lambda model, question, text: [math.log(p) for p in known[question]]
    found = await Extraction(data=write(tmp_path / "d.jsonl", FOUR[:2])).run(bench("m"))
    assert found.measures["m"]["extraction strength"] == pytest.approx((1 + 0.5) / 2)
    assert [item["extraction_strength"] for item in found.items] == [1, 0.5]
    assert all(body["trace"] == {"top": 1} for _, body in fake.bodies)
