"""What `benchmarks.real` makes of replies: numbers, intervals, and nothing asked or trained twice. No models."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from benchmarks import forgetting
from benchmarks import lab as lab_module
from benchmarks.lab import Lab
from benchmarks.real import forgetting as real_forgetting
from benchmarks.real import replies as replies_module
from benchmarks.real import trained as trained_module
from benchmarks.real.authors import authors_world
from benchmarks.real.contestants import Batch
from benchmarks.real.grades import difference, graded
from benchmarks.real.gsm8k import gaps
from benchmarks.real.interval import bootstrapped, proportion
from benchmarks.real.number import final_number, last_number
from benchmarks.real.questions import Question, read_questions, read_tasks
from benchmarks.real.replies import Kept, Replies, System
from benchmarks.real.setup import SIZES, Setup
from motet.evaluation.measures.answers import gap_closed
from motet.experts.bundle import BUNDLE
from motet.settings import texts_of
from motet.training.recipe import Recipe
from motet.training.run.recipe_file import read_recipe


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sells 9 * 2 = <<9*2=18>>18.\n#### 18", "18"),
        ("#### 109,200,000", "109200000"),
        ("#### -7", "-7"),
        ("#### −7", "-7"),
        ("#### $-1,234.50", "-1234.5"),
        ("#### -$3", "-3"),
        ("#### 18.00\n", "18"),
        ("#### .5", "0.5"),
        ("####18.", "18"),
        ("#### 20%", "20"),
        ("#### 18\nAnother question\n#### 20", "18"),
    ],
)
def test_the_number_of_the_form(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["The answer is 18.", "#### 1. First, count the eggs", "#### eighteen", "####", "", "a #### 18", "## 18"]
)
def test_no_number_without_the_form(text: str) -> None:
    assert final_number(text) is None


def test_the_last_number_in_any_form() -> None:
    assert last_number("16 - 3 = 13, so she earns **$26.00**.") == 26
    assert last_number("none at all") is None


def test_grades() -> None:
    questions = [Question("a", "#### 1"), Question("b", "#### 2"), Question("c", "#### 3")]
    texts = [("#### 1.0", True), ("It is 2.", True), ("#### 4", False)]
    grades = graded(questions, [Kept(q.question, *text, 9, {}) for q, text in zip(questions, texts, strict=True)])
    assert grades.right == (True, False, False)
    assert grades.formed == (True, False, True)
    assert grades.amounts == (True, True, False)
    assert grades.cut == (False, False, True)


def itself(mean: float) -> float:
    return mean


def minus(a: float, b: float) -> float:
    return a - b


def test_wilson() -> None:
    """Against the formula, worked by hand for 1 of 10 and z = 1.96."""
    found = proportion([True] + [False] * 9)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.0179, 0.4042), abs=2e-4)
    assert proportion([False] * 10).low == pytest.approx(0)


def test_the_bootstrap_is_that_of_a_mean() -> None:
    """400 questions, half of them right: a standard error of 0.025. The quantiles of 10,000 draws stray by 0.0005."""
    hits = [True, False] * 200
    found = bootstrapped(itself, hits)
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    assert found == bootstrapped(itself, hits)


def test_systems_are_drawn_together() -> None:
    """The same replies differ by nothing in every draw, however uncertain each mean is."""
    hits = [True, False] * 10
    found = bootstrapped(minus, hits, hits)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_draws_without_a_gap_are_left_out() -> None:
    base, tuned = [False] * 4, [True, False, False, False]
    found = bootstrapped(gap_closed, base, tuned, tuned)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert found.undefined == pytest.approx(0.75**4, abs=0.02)
    nothing = bootstrapped(gap_closed, base, base, base)
    assert (nothing.value, nothing.low, nothing.undefined) == (None, None, 1)


def test_gap_closed() -> None:
    def system(*hits: int) -> Any:
        questions = [Question(str(i), "#### 1") for i in range(len(hits))]
        return graded(questions, [Kept(q.question, f"#### {hit}", True, 9, {}) for q, hit in zip(questions, hits, strict=True)])  # fmt: skip # noqa: E501

    grades = {"base": system(0, 0, 0, 0), "composed": system(1, 1, 0, 0), "tuned directly": system(1, 1, 1, 1)}
    assert gaps(grades)["composed"]["value"] == 0.5
    assert gaps({"base": grades["base"]}) == {}
    assert difference(grades["composed"], grades["base"]).value == 0.5


def test_questions_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": "18"}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="without '#### NUMBER': '18'"):
        read_questions(tmp_path, "some.jsonl", 0, 1)
    with pytest.raises(SystemExit, match="has 1 rows, 3 are asked for"):
        read_questions(tmp_path, "some.jsonl", 1, 2)
    with pytest.raises(SystemExit, match=r"other.jsonl.*--gsm8k"):
        read_questions(tmp_path, "other.jsonl", 0, 1)


def test_tasks_are_asked_in_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "HumanEval.jsonl.gz"
    lines = [json.dumps({"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n"}) for i in range(3)]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    asked = ["Complete this function:\n```python\ndef f1():\n```", "Complete this function:\n```python\ndef f2():\n```"]
    assert read_tasks(file, 1, 2) == asked
    with pytest.raises(SystemExit, match="has 3 rows, 4 are asked for"):
        read_tasks(file, 2, 2)
    with pytest.raises(SystemExit, match=r"other.*--humaneval"):
        read_tasks(tmp_path / "other", 0, 1)


class Echo:
    """A server that answers with the question, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @asynccontextmanager
    async def open(self, models: Path) -> AsyncGenerator[AsyncOpenAI]:
        transport = httpx2.MockTransport(self._answer)
        client = DefaultAsyncHttpxClient(transport=transport, trust_env=False)
        async with AsyncOpenAI(base_url="http://echo/v1", api_key="none", http_client=client) as sdk:
            yield sdk

    def _answer(self, request: Any) -> Any:
        text = json.loads(request.content)["messages"][-1]["content"]
        self.asked.append(text)
        message = {"role": "assistant", "content": f"re: {text}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return httpx2.Response(200, json=body)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    made = Echo()
    monkeypatch.setattr(replies_module, "in_process", made.open)
    return made


def replies(folder: Path, max_tokens: int = 9) -> Replies:
    return Replies(folder / "base.jsonl", System("base", {"m": Path("/models/m")}, {"model": "m"}), max_tokens)


def ask(folder: Path, questions: Sequence[str], max_tokens: int = 9) -> list[str]:
    asked = replies(folder, max_tokens)
    asked.ask(questions, "float32")
    return [row.reply for row in asked.of(questions)]


def test_no_question_is_asked_twice(tmp_path: Path, echo: Echo) -> None:
    assert ask(tmp_path, ["a", "b"]) == ["re: a", "re: b"]
    assert ask(tmp_path, ["c", "b", "a"]) == ["re: c", "re: b", "re: a"]
    assert sorted(echo.asked) == ["a", "b", "c"]


def test_a_killed_run_loses_half_a_line_alone(tmp_path: Path, echo: Echo) -> None:
    ask(tmp_path, ["a", "b"])
    file = tmp_path / "base.jsonl"
    file.write_text(file.read_text()[:-9])
    assert len(replies(tmp_path).missing(["a", "b"])) == 1
    assert ask(tmp_path, ["a", "b"]) == ["re: a", "re: b"]
    assert len(echo.asked) == 3
    assert not replies(tmp_path).missing(["a", "b"])


def test_replies_of_another_setting_do_not_count(tmp_path: Path, echo: Echo) -> None:
    ask(tmp_path, ["a"])
    ask(tmp_path, ["a"], max_tokens=10)
    assert echo.asked == ["a", "a"]
    assert not replies(tmp_path, 9).missing(["a"])


def test_the_rate_is_that_of_the_whole_batch() -> None:
    """A token a second each; the second is warm at 14 s. At 20 s the first has drawn six more, the second is late."""
    whole = drawing(Batch(2, 6), until=30)
    assert whole.is_over
    assert whole.counts == [20, 9]
    assert whole.rate() == pytest.approx(11 / 6)


def test_a_batch_that_was_never_whole_has_no_rate() -> None:
    with pytest.raises(SystemExit, match=r"too few tokens.*\[12, 2\]"):
        drawing(Batch(2, 6), until=12).rate()


def drawing(whole: Batch, until: int) -> Batch:
    """The second sequence begins ten seconds behind the first."""
    for second in range(1, until + 1):
        whole.arrived(0, second, float(second))
        whole.arrived(1, max(second - 10, 0), float(second))
    return whole


def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `motet` is called with, instead of calling it."""
    called: list[list[str]] = []
    monkeypatch.setattr(trained_module, "_motet", called.append)
    return called


def test_a_training_is_measured_then_run_then_resumed_then_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = commands(monkeypatch)
    output = tmp_path / "expert"

    def train() -> list[list[str]]:
        called.clear()
        assert trained_module.trained("gsm8k-expert", output, {"root": "models"}, 1) == output
        return [arguments[4:] for arguments in called]

    assert train() == [["--threads", "1", "--dry-run"], ["--threads", "1"]]
    output.mkdir()
    (output / "run.json").touch()
    assert train() == [["--threads", "1", "--resume"]]
    (output / BUNDLE).touch()
    assert train() == []


def test_a_lab_measures_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path, tmp_path)
    assert lab.kept("figure", lambda: {"a": 1}) == {"a": 1}
    assert Lab(tmp_path, tmp_path).kept("figure", lambda: pytest.fail("measured again")) == {"a": 1}


def test_a_lab_trains_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def train(recipe: Recipe, *_: Any, **__: Any) -> None:
        made.append(recipe.output)
        recipe.output.mkdir()
        (recipe.output / BUNDLE).touch()

    monkeypatch.setattr(lab_module, "train", train)
    for _ in range(2):
        Lab(tmp_path, tmp_path).train("ga-20", "ga", "schedule.steps=20")
    assert made == [tmp_path / "ga-20"]
    (tmp_path / "ga-20" / BUNDLE).unlink()
    (tmp_path / "ga-20").rmdir()
    Lab(tmp_path, tmp_path).train("ga-20", "ga")
    assert len(made) == 2


def test_a_lab_serves_what_its_subjects_name_alone(tmp_path: Path) -> None:
    models = {name: {"path": name} for name in ("large", "small", "other")}
    compositions = {"both": {"strategy": "contrastive", "base": "large", "amateur": {"model": "small"}}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models, "compositions": compositions}))
    file = Lab(tmp_path, tmp_path).operator_file({"one": "both"})
    assert set(file["models"]) == {"large", "small"}
    assert Lab(tmp_path, tmp_path).operator_file({"one": {"model": "other"}})["compositions"] == {}


def test_invented_authors_keep_their_books(tmp_path: Path) -> None:
    world = authors_world(4, seed=0)
    assert [entity.kind for entity in world.forget] == ["person", "work", "work"] * 2
    assert not {entity.name for entity in world.forget} & {entity.name for entity in world.tuned}
    assert len(world.tuned) == 6


def kept_row(told: float, utility: float) -> dict[str, Any]:
    """What is kept of a method, by its chance to tell a fact."""
    tries = {f"{kind}@{k}": min(1.0, told * k) for kind in ("leak", "pairs") for k in forgetting.TRIES}
    shares = {"extraction strength": told, "model utility": utility}
    return {**tries, **shares, "ratios": [told + i / 100 for i in range(20)]}


def test_forgetting_goes_on_from_what_is_kept_and_compares_it(tmp_path: Path) -> None:
    """Nothing is trained or asked, for every method's measures lie there."""
    rows = {forgetting.TARGET: (0.9, 0.6), forgetting.RETRAINED: (0.001, 0.6), "NPO": (0.0012, 0.45)}
    for place, method in enumerate(forgetting.METHODS):
        if method in rows:
            (tmp_path / f"forgetting-{place}.json").write_text(json.dumps(kept_row(*rows[method])))
    found = forgetting.measure(Lab(tmp_path, tmp_path), list(rows), forgetting.Trial(20, 13, models={}))
    assert found["NPO"]["leak@100 / retrained"] == pytest.approx(1.2)
    assert found["NPO"]["utility kept"] == pytest.approx(0.75)
    assert found["NPO"]["forget quality"] > 0.05 > found[forgetting.TARGET]["forget quality"]
    summed = forgetting.summary({"0": found})
    assert [summed[method]["reached"] for method in rows] == [0, 1, 0]


def test_a_real_checkpoint_forgets_by_recipes_that_are_valid(tmp_path: Path) -> None:
    setup = Setup(tmp_path, tmp_path, tmp_path, tmp_path, SIZES["smoke"], "float32", 1)
    trial = real_forgetting.trial(setup)
    named = set(texts_of({method: forgetting.METHODS[method] for method in real_forgetting.NAMES}))
    assert named >= trial.models.keys()
    assert trial.settings.keys() == {made.recipe for made in trial.models.values()}
    for made in trial.models.values():
        settings = (*trial.settings[made.recipe], *made.settings)
        recipe, _ = read_recipe(made.recipe, [f"root={tmp_path}", f"output={tmp_path / made.recipe}", *settings])
        assert recipe.schedule.steps == max(2, round(real_forgetting.STEPS[made.recipe] * setup.size.steps))
