"""Tasks over a server whose every answer is written down, with measures computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from motet.evaluation.settings import RecipeError
from motet.evaluation.subject import Subject
from motet.evaluation.tasks.eft_grid import EftGrid
from motet.evaluation.tasks.gap_closed import GapClosed
from motet.evaluation.tasks.ignorance import Ignorance
from motet.evaluation.tasks.muse import Knowledge, Muse, Privacy
from motet.evaluation.tasks.quality import Quality
from motet.evaluation.tasks.robustness import CONDITIONS, Robustness
from motet.evaluation.tasks.tofu import Tofu
from tests.evaluation.conftest import FakeApi, MakeBench

FOUR = [{"question": f"q{i}?", "answer": f"the answer is a{i}", "value": f"a{i}"} for i in range(4)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def knows(*known: int) -> dict[str, str]:
    """The right answers to some of the four questions."""
    return {f"q{i}?": f"the answer is a{i}" for i in known}


@pytest.fixture
def said(fake: FakeApi) -> dict[str, dict[str, str]]:
    """Model → question → reply; else "the answer is no"."""
    table: dict[str, dict[str, str]] = {}
    fake.say = lambda model, question: table.get(model, {}).get(question, "the answer is no")
    return table


async def test_gap_closed(bench: MakeBench, said: dict[str, dict[str, str]], tmp_path: Path) -> None:
    said |= {"base": knows(0), "composed": knows(0, 1, 2), "tuned": knows(0, 1, 2, 3)}
    task = GapClosed(data=write(tmp_path / "d.jsonl", FOUR), base="base", tuned="tuned")
    found = await task.run(bench("base", "composed", "tuned"))
    assert found.measures["composed"] == {
        "exact match": 0.75,
        "ROUGE-L recall": pytest.approx((3 + 3 / 4) / 4),
        "gap closed": pytest.approx(2 / 3),
    }
    assert found.measures["base"]["gap closed"] == 0
    assert len(found.items) == 12


async def test_prompt_only_subjects_read_instructions_and_examples(
    bench: MakeBench, fake: FakeApi, tmp_path: Path
) -> None:
    subject = Subject(model="base", instructions="Be brief.", examples=2)
    made = bench(prompted=subject)
    made = type(made)(made.api, made.subjects, tmp_path, shots=[("a?", "A"), ("b?", "B"), ("c?", "C")])
    await made.ask(subject, ["q0?"], max_tokens=8)
    assert [(m["role"], m["content"]) for m in fake.bodies[0][1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "a?"),
        ("assistant", "A"),
        ("user", "b?"),
        ("assistant", "B"),
        ("user", "q0?"),
    ]


async def test_eft_grid(bench: MakeBench, said: dict[str, dict[str, str]], tmp_path: Path) -> None:
    said |= {"s": knows(0), "up": knows(0, 1), "down": {}, "l": knows(0, 1, 2)}
    grid = {"small": {"small": "s", "large": "down"}, "large": {"small": "up", "large": "l"}}
    found = await EftGrid(data=write(tmp_path / "d.jsonl", FOUR), grid=grid).run(bench("s", "up", "down", "l"))
    assert found.measures == {
        "pre-training small": {"fine-tuning small": 0.25, "fine-tuning large": 0.0},
        "pre-training large": {"fine-tuning small": 0.5, "fine-tuning large": 0.75},
    }


def tofu_rows(count: int, prefix: str) -> list[dict[str, Any]]:
    return [
        {"question": f"{prefix}{i}?", "answer": f"right {i}", "paraphrased_answer": f"para {i}",
         "perturbed_answer": [f"wrong {i}", f"false {i}"]}
        for i in range(count)
    ]  # fmt: skip


def scores(model: str, question: str, text: str) -> list[float]:
    """Right answers have probability 1/2, wrong ones 1/4 and 1/16, but the forgetful models know no forget item."""
    word = text.split()[0]
    if question.startswith("f") and model in ("retain", "unlearned"):
        return [math.log(0.25)]
    return [math.log({"right": 0.5, "para": 0.5, "wrong": 0.25, "false": 0.0625}[word])] * 2


async def test_tofu(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    fake.score = scores
    fake.say = lambda model, question: f"right {question.strip('fkw?')}" if question[0] != "f" else "right"
    rows = {"f": 3, "k": 2, "w": 2}
    files = {name: write(tmp_path / f"{name}.jsonl", tofu_rows(count, name)) for name, count in rows.items()}
    task = Tofu(
        forget=files["f"],
        splits={"retain": files["k"], "facts": files["w"]},
        choices=("facts",),
        reference="retain",
    )  # fmt: skip
    measures = (await task.run(bench("tuned", "unlearned", "retain"))).measures
    tuned = measures["tuned"]
    ratio = (0.25 + 0.0625) / 2 / 0.5
    assert tuned["forget quality"] == pytest.approx(0.1)  # 3 against 3, apart
    assert tuned["forget probability"] == pytest.approx(0.5)
    assert tuned["forget truth ratio"] == pytest.approx(ratio)
    assert tuned["retain probability"] == pytest.approx(0.5)
    assert tuned["facts probability"] == pytest.approx(0.5 / (0.5 + 0.25 + 0.0625))
    assert tuned["retain truth ratio"] == pytest.approx(1 - ratio)
    assert tuned["forget ROUGE-L"] == pytest.approx(0.5)
    assert tuned["retain ROUGE-L"] == 1
    parts = [0.5, 1, 1 - ratio, 0.5 / 0.8125, 1, 1 - ratio]
    assert tuned["model utility"] == pytest.approx(6 / sum(1 / part for part in parts))
    assert measures["unlearned"]["forget quality"] == 1
    assert measures["unlearned"]["forget truth ratio"] == 1
    assert measures["unlearned"]["model utility"] == pytest.approx(tuned["model utility"])


async def test_tofu_scores_the_end_where_asked(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    fake.score = scores
    file = write(tmp_path / "f.jsonl", tofu_rows(1, "f"))
    await Tofu(forget=file, splits={"retain": file}, end="</s>").run(bench("tuned"))
    texts = next(body["continuations"] for path, body in fake.bodies if path == "/v1/score")
    assert texts == ["right 0</s>", "para 0</s>", "wrong 0</s>", "false 0</s>"]


async def test_tofu_refuses_questions_without_wrong_answers(bench: MakeBench, tmp_path: Path) -> None:
    files = [write(tmp_path / name, FOUR) for name in ("f.jsonl", "r.jsonl")]
    with pytest.raises(RecipeError) as refused:
        await Tofu(forget=files[0], splits={"retain": files[1]}).run(bench("m"))
    assert [problem.split(":")[0] for problem in refused.value.problems] == files


async def test_ignorance_compares_the_forgotten_with_nobody(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    fake.score = scores
    forget, unknown = write(tmp_path / "f.jsonl", tofu_rows(4, "f")), write(tmp_path / "u.jsonl", tofu_rows(4, "u"))
    own = (await Ignorance(forget=forget, unknown=unknown).run(bench("tuned", "retain"))).measures
    assert own["tuned"]["ignorance distance"] == 0  # both sets get the same scores
    assert own["retain"]["ignorance distance"] == 1
    other = (await Ignorance(forget=forget, unknown=unknown, ignorant="tuned").run(bench("tuned", "retain"))).measures
    assert other["retain"] == own["retain"]
    assert other["retain"]["ignorance p"] == pytest.approx(2 / 70)


async def test_muse(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    write(tmp_path / "v.jsonl", [{"prompt": "once", "gt": "upon a time"}])
    write(tmp_path / "q.jsonl", FOUR[:1])
    (tmp_path / "members.json").write_text(json.dumps(["m1", "m2"]))
    (tmp_path / "others.json").write_text(json.dumps(["o1", "o2"]))
    fake.say = lambda model, text: {"once": "upon a hill", "q0?": "the answer is a0\nand more"}.get(text, "")
    fake.score = lambda model, question, text: [-1.0 if text[0] == "m" and model == "tuned" else -2.0] * 5
    task = Muse(
        verbatim="v.jsonl",
        forget_knowledge=Knowledge(data="q.jsonl"),
        retain_knowledge=Knowledge(data="q.jsonl", examples="q.jsonl"),
        privacy=Privacy(forget="members.json", holdout="others.json", reference="retain"),
        sustainability=("tuned", "retain"),
    )
    measures = (await task.run(bench("tuned", "retain"))).measures
    assert measures["tuned"] == {
        "verbatim memorisation": pytest.approx(2 / 3),
        "knowledge memorisation": 1.0,
        "utility": 1.0,
        "Min-K% AUC": 1.0,
        "PrivLeak": -100.0,
        "sustainability": 1.0,
    }
    assert measures["retain"]["PrivLeak"] == 0
    chats = [body["messages"] for path, body in fake.bodies if path == "/v1/chat/completions"]
    assert sorted(len(chat) for chat in chats) == [1, 1, 3, 3]


def test_muse_series_need_a_utility() -> None:
    with pytest.raises(ValueError, match="give retain_knowledge"):
        Muse(verbatim="v.jsonl", scalability=("a",))


async def test_robustness(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    items = [item | {"paraphrased_question": f"re {item['question']}", "statement": "A fact."} for item in FOUR[:2]]
    forget, retain = write(tmp_path / "f.jsonl", items), write(tmp_path / "r.jsonl", FOUR)
    fake.say = lambda model, text: "it is a0 or a1" if text.startswith("A fact.") else "nobody knows"
    measures = (await Robustness(forget=forget, retain=retain).run(bench("m"))).measures["m"]
    assert measures["value named, plain"] == 0
    assert measures["value named, reintroduced"] == 1
    assert measures["ROUGE-L, reintroduced"] == pytest.approx(2 / 4)
    asked = [[m["content"] for m in body["messages"]] for _, body in fake.bodies]
    assert ["re q0?"] in asked
    assert ["q1? q0?"] in asked  # the retain question behind the shots, which wraps around
    assert max(map(len, asked)) == 2 * len(FOUR) + 1


async def test_robustness_refuses_conditions_that_the_data_lack(bench: MakeBench, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", FOUR)
    with pytest.raises(RecipeError, match="4 of 4 questions cannot be asked translated"):
        await Robustness(forget=file, retain=file, conditions=("translated",)).run(bench("m"))


def test_every_condition_has_a_name() -> None:
    assert set(Robustness.model_fields["conditions"].annotation.__args__[0].__args__) == set(CONDITIONS)  # type: ignore[union-attr]


async def test_quality(bench: MakeBench, fake: FakeApi, tmp_path: Path) -> None:
    fake.say = lambda model, question: "the answer is a0 SHIFT" if model == "composed" else "the answer is a0"
    fake.score = lambda model, question, text: [math.log(0.5)] * 3
    found = await Quality(data=write(tmp_path / "d.jsonl", FOUR), base="base", repeats=2).run(bench("base", "composed"))
    composed = found.measures["composed"]
    assert composed["perplexity under base"] == pytest.approx(2)
    assert composed["distinct-2"] == pytest.approx(4 / 16)
    assert composed["shifted tokens"] == pytest.approx(1 / 5)
    # every confidence is e^(−0.5 · 4), one of four replies is right: bin (0.1, 0.2]
    assert found.measures["base"]["calibration error"] == pytest.approx(0.25 - math.exp(-2))
    assert found.measures["base"]["latency multiple"] == 1
    assert composed["latency multiple"] is not None
