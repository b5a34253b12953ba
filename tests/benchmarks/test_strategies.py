"""The table of experiments: intervals, verdicts, what texts state, what is kept; the committed table. No models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from benchmarks.lab import Lab
from benchmarks.strategies import __main__ as command
from benchmarks.strategies import cited
from benchmarks.strategies.bench import Bench
from benchmarks.strategies.contexts import conflicts
from benchmarks.strategies.file import COLUMNS, TABLE, read, write
from benchmarks.strategies.finding import Better, Finding, Verdict, compared, interval, mean, ratio, stacked, verdict
from benchmarks.strategies.proxies import budget_finding
from benchmarks.strategies.sentences import Statement, statement, statements
from benchmarks.strategies.table import OWN, Experiment, paper
from motet.composers.strategies import STRATEGIES
from motet.demo.templates import ATTRIBUTES, SMALL_TALK


@pytest.mark.parametrize(
    ("low", "high", "better", "margin", "expected"),
    [
        (0.1, 0.3, "more", 0.0, "shown"),
        (-0.3, -0.1, "more", 0.0, "miss"),
        (-0.1, 0.1, "more", 0.0, "not shown"),
        (0.0, 0.0, "more", 0.0, "not shown"),
        (-0.3, -0.1, "less", 0.0, "shown"),
        (0.1, 0.3, "less", 0.0, "miss"),
        (-0.01, 0.0, "more", 0.02, "shown"),
        (-0.05, 0.01, "more", 0.02, "not shown"),
        (-0.05, -0.03, "more", 0.02, "miss"),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(
    low: float, high: float, better: Better, margin: float, expected: Verdict
) -> None:
    assert verdict(low, high, better, margin) == expected


def test_the_interval_is_that_of_a_difference_of_means() -> None:
    """400 items of each side, half of them right: a standard error of 0.0354, where the sides are drawn apart. The
    quantiles of 2,000 draws stray by about 0.002."""
    hits = np.array([1.0, 0.0] * 200)
    low, high = interval(hits, hits, mean, paired=False)
    assert (low, high) == pytest.approx((-1.96 * 0.0354, 1.96 * 0.0354), abs=0.01)
    assert interval(hits, hits, mean, paired=True) == (0, 0), "the same items differ by nothing in every draw"
    with pytest.raises(ValueError, match="2, 1"):
        interval(np.ones(2), np.ones(1), mean, paired=True)


def test_a_share_of_tokens_is_not_the_mean_of_the_shares_of_texts() -> None:
    texts = stacked([(1, 1), (0, 3)])
    assert ratio(texts) == 0.25
    assert ratio(stacked([(0, 0)])) == 0
    found = compared("c", "m", "b", texts, stacked([(1, 1), (3, 3)]), better="less", statistic=ratio)
    assert (found.value, found.baseline, found.n) == (0.25, 1, 2)


def test_nothing_is_kept_where_there_was_nothing_to_lose() -> None:
    assert compared("c", "m", "b", [0.0] * 9, [0.0] * 9, margin=0.02).verdict == "not shown"
    assert compared("c", "m", "b", [1.0] * 9, [1.0] * 9, margin=0.02).verdict == "shown"


def test_nearly_every_token_is_not_every_token() -> None:
    proxy = [1.0, 0.0] * 200
    assert budget_finding([1.0] * 400, proxy).verdict == "shown"
    assert budget_finding([1.0] * 399 + [0.0], proxy).verdict == "miss"


@pytest.mark.parametrize(
    ("kind", "attribute", "template"),
    [(kind, a.name, t) for kind, attributes in ATTRIBUTES.items() for a in attributes for t in a.statements],
)
def test_every_sentence_of_the_world_is_read_back(kind: str, attribute: str, template: str) -> None:
    found = statement(template.format(e="The Last Song", v="Sager College"))
    assert found == Statement(kind, attribute, "The Last Song", "Sager College")  # type: ignore[arg-type]


def test_small_talk_states_nothing() -> None:
    texts = [template.format(a="Ann Bor", b="The Last Song") for template in SMALL_TALK]
    assert not [found for text in texts for found in statements(text)]
    assert (
        len(statements("Ann Bor plays the lute. Ann Bor was seen near Rid. Ann Bor was born in Rid. Ann Bor pl")) == 2
    )


def test_a_statement_is_true_of_its_entity_alone() -> None:
    entities: dict[str, dict[str, dict[str, str]]] = {
        "Ann Bor": {"facts": {"instrument": "lute"}},
        "Rid": {"facts": {}},
    }
    found = [statement(f"{name} plays the {value}.") for name, value in
             (("Ann Bor", "lute"), ("Ann Bor", "harp"), ("Rid", "lute"), ("Nobody", "lute"))]  # fmt: skip
    assert [one.is_true(entities) for one in found if one] == [True, False, False, False]


def test_contexts_contradict() -> None:
    cases = list(conflicts())
    assert len(cases) == 96
    assert all(case.said != case.known and case.said in case.context for case in cases)


HOW = "see the experiment under 'Add a strategy' in CONTRIBUTING.md"


def test_every_strategy_has_an_experiment_and_a_source() -> None:
    assert {experiment.strategy for experiment in command.EXPERIMENTS.values()} == set(STRATEGIES), HOW
    assert [name for name in STRATEGIES if paper(name) == OWN] == ["budget"], "cited as `Title (Authors 2024, arXiv:…)`"
    assert paper("proxy_tuning") == "Liu et al. 2024, arXiv:2401.08565"
    assert paper("product") == "Hinton 2002"
    rooms = [name for room in command.ROOMS for name in room.EXPERIMENTS]
    assert len(rooms) == len(set(rooms)) == len(command.EXPERIMENTS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Lab(tmp_path, tmp_path), None, 4)


def test_cited_rows_say_what_the_results_say(bench: Bench) -> None:
    verdicts = {name: [one.verdict for one in experiment.run(bench)] for name, experiment in cited.EXPERIMENTS.items()}
    assert verdicts["proxy_tuning"] == ["shown", "shown"]
    assert verdicts["proxy_tuning-gsm8k"][1] == "miss"
    assert verdicts["contrastive-gsm8k"] == ["miss", "not shown"]


def test_what_was_found_is_written_as_it_comes_and_not_sought_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(_: Bench) -> list[Finding]:
        ran.append("a")
        return [compared("claim", "measure, shares", "b", [1.0] * 4, [0.0] * 4)]

    def fails(_: Bench) -> list[Finding]:
        raise RuntimeError

    experiments = {
        "a": Experiment("mixture", "demo", run),
        "b": Experiment("mixture", "real", fails, real=True),
        "c": Experiment("sparse", "demo", fails),
    }
    monkeypatch.setattr(command, "EXPERIMENTS", experiments)
    out = tmp_path / "table.csv"
    for _ in range(2):
        with pytest.raises(RuntimeError):
            command.measure(bench, list(experiments), out)
    assert ran == ["a"]
    kept = command.measure(bench, list(experiments), tmp_path / "kept.csv", run=False)
    assert [kept[name][0].verdict for name in experiments] == ["shown", "not measured", "not measured"]
    assert read(tmp_path / "kept.csv")[2]["claim"] == "the experiment was not made"
    first, second = read(out)
    assert (first["measure"], first["value"], first["verdict"]) == ("measure, shares", "1", "shown")
    assert first["command"] == "python -m benchmarks.strategies --only a"
    assert (second["verdict"], second["value"]) == ("not measured", "")
    assert second["command"].endswith("--only b --models FOLDER")


def test_one_experiment_leaves_the_rows_of_the_others(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds(claim: str) -> Callable[[Bench], list[Finding]]:
        return lambda _: [compared(claim, "measure", "b", [1.0] * 4, [0.0] * 4)]

    experiments = {name: Experiment("mixture", "demo", finds(f"old {name}")) for name in "abcd"}
    monkeypatch.setattr(command, "EXPERIMENTS", experiments)
    out = tmp_path / "table.csv"
    command.measure(bench, ["a", "c", "d"], out)
    del experiments["d"]
    command.measure(bench, ["b"], out)
    assert [row["claim"] for row in read(out)] == ["old a", "old b", "old c"]


def test_the_committed_table_is_whole() -> None:
    rows = read(TABLE)
    assert {row["strategy"] for row in rows} == set(STRATEGIES), HOW
    assert {row["verdict"] for row in rows} <= set(get_args(Verdict))
    for row in rows:
        assert tuple(row) == COLUMNS
        name = row["command"].partition("--only ")[2].partition(" ")[0]
        assert name in command.EXPERIMENTS or row["command"] in {e.cites for e in cited.EXPERIMENTS.values()}
        if row["verdict"] != "not measured":
            low, high = float(row["difference low"]), float(row["difference high"])
            assert low <= high
            assert row["paper"] == paper(row["strategy"])


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "table.csv"
    row = dict.fromkeys(COLUMNS, 'a, "b"')
    write(file, [row])
    assert read(file) == [row]
    assert [path.name for path in file.parent.iterdir()] == ["table.csv"]
