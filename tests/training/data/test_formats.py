"""Columns are recognised; every format becomes the same records; bad rows say what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from motet.training.data.errors import DataError, RowError
from motet.training.data.formats import FORMATS, recognise
from motet.training.data.records import Answer, Record, Text
from motet.training.objectives.objective import RecordKind
from tests.training.data.cases import load

USER = {"role": "user", "content": "Why?"}
GUIDE = {"role": "assistant", "content": "Because."}


def only(folder: Path, row: Mapping[str, Any], kind: RecordKind = "documents") -> Record:
    return load(folder, [row], kind).records[0]


def refusal(folder: Path, row: Mapping[str, Any], kind: RecordKind = "documents", **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, [row], kind, **data)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_each_format_becomes_a_record(tmp_path: Path) -> None:
    assert only(tmp_path, {"text": "Hello."}).sides == {"": Text("Hello.")}
    as_text = {"": Answer("Why?", "Because.")}
    assert only(tmp_path, {"prompt": "Why?", "completion": "Because."}).sides == as_text
    assert only(tmp_path, {"instruction": "Why?", "input": "", "output": "Because."}).sides == as_text
    with_input = only(tmp_path, {"instruction": "Sort.", "input": "b a", "output": "a b"})
    assert with_input.sides == {"": Answer("Sort.\n\nb a", "a b")}
    conversation = ((), (("user", "Why?"), ("assistant", "Because.")))
    part = only(tmp_path, {"messages": [USER, GUIDE]}).sides[""]
    assert isinstance(part, Answer)
    assert (part.prompt, part.completion) == conversation
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    assert only(tmp_path, {"conversations": turns}).sides[""] == part


def test_pairs_and_labels(tmp_path: Path) -> None:
    pair = only(tmp_path, {"prompt": "Why?", "chosen": "A.", "rejected": "B."}, "pairs")
    assert pair.sides == {"chosen": Answer("Why?", "A."), "rejected": Answer("Why?", "B.")}
    rows = [{"prompt": [USER], "completion": [GUIDE], "label": label} for label in (True, False)]
    labelled = load(tmp_path, rows, "labelled")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 0]


def test_labels_of_csv_files_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nWhy?,A.,TRUE\nWhy?,B.,0\n")
    dataset = load(tmp_path, None, "labelled", files=["a.csv"])
    assert [record.label for record in dataset.records] == [True, False]


@pytest.mark.parametrize("names", [["spam", "ham", "spam"], [7, 3, 7]])
def test_classes_are_sorted_whatever_the_order_of_rows(tmp_path: Path, names: list[Any]) -> None:
    forward = load(tmp_path, [{"text": "t", "label": name} for name in names], "classes")
    backward = load(tmp_path, [{"text": "t", "label": name} for name in reversed(names[1:])], "classes")
    assert forward.classes == backward.classes == tuple(sorted(set(names)))
    assert forward.labels is not None
    assert [forward.classes[index] for index in forward.labels] == names


def test_labels_of_two_types_or_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.jsonl:2: label: 1 is no str"):
        load(tmp_path, [{"text": "t", "label": "a"}, {"text": "t", "label": 1}], "classes")
    assert "all labels are 'a'" in refusal(tmp_path, {"text": "t", "label": "a"}, "classes")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": " "}, "text: the text is empty"),
        ({"text": 3}, "text: expected text, got int"),
        ({"prompt": 3, "completion": "x"}, "prompt: expected text or messages, got int"),
        ({"prompt": "Why?", "completion": [GUIDE]}, "completion: expected text as in prompt, got list"),
        ({"prompt": [USER], "completion": "x"}, "completion: expected messages as in prompt, got text"),
        ({"prompt": [USER], "completion": [USER]}, "completion: no message of the assistant"),
        ({"messages": [USER]}, "messages: no message of the assistant"),
        ({"messages": []}, "messages: no messages"),
        ({"messages": "hello"}, "messages: expected a list of messages, got str"),
        ({"messages": [USER, "x"]}, "messages[2]: expected an object with role and content, got str"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "unknown role 'asistant'; allowed: system, developer,"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "nearest: assistant"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[2]: the answer is empty"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[2].content: expected text"),
        ({"messages": [USER, {**GUIDE, "tool_calls": [1]}]}, "messages[2]: tool_calls not supported"),
        ({"conversations": [{"from": "humn", "value": "x"}]}, "unknown speaker 'humn'"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input: expected text, got int"),
    ],
)
def test_bad_documents_are_named(tmp_path: Path, row: Mapping[str, Any], said: str) -> None:
    problem = refusal(tmp_path, row)
    assert problem.startswith(f"{tmp_path}/train.jsonl:1: ")
    assert said in problem


def test_bad_pairs_and_labels_are_named(tmp_path: Path) -> None:
    assert "are the same" in refusal(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "b"}, "pairs")
    row: dict[str, Any] = {"prompt": "a", "chosen": "b", "rejected": "c", "spans": []}
    assert "spans: not supported" in refusal(tmp_path, row, "pairs")
    row = {"prompt": "a", "completion": "b", "label": "maybe"}
    assert "expected true or false, got 'maybe'" in refusal(tmp_path, row, "labelled")
    assert "expected a class's name" in refusal(tmp_path, {"text": "a", "label": 0.5}, "classes")


def test_unknown_columns_list_the_formats_and_the_nearest() -> None:
    with pytest.raises(RowError) as caught:
        recognise(["prompt", "answer"], "documents")
    message = str(caught.value)
    assert message.startswith("columns answer, prompt fit no format of documents; nearest: prompt_completion lacks com")
    for name, form in FORMATS.items():
        assert (name in message) == (form.kind == "documents")


def test_ambiguous_columns_ask_for_a_format(tmp_path: Path) -> None:
    row = {"text": "Why? Because.", "prompt": "Why?", "completion": "Because."}
    assert "fit several formats: text, prompt_completion" in refusal(tmp_path, row)
    assert load(tmp_path, [row], format="text").records[0].sides == {"": Text("Why? Because.")}


def test_files_of_several_formats_are_each_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "assistant", "content": "Hi."}]}')
    (tmp_path / "b.jsonl").write_text('{"instruction": "Greet.", "output": "Hi."}')
    assert len(load(tmp_path, None, files=["*.jsonl"])) == 2


def test_a_format_of_another_kind_is_refused(tmp_path: Path) -> None:
    problem = refusal(tmp_path, {"text": "x"}, "pairs", format="text")
    assert problem == "data.train.format: text has no pairs; allowed: auto, preference"


def test_a_row_without_a_column_shows_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{"text": "x"}, {"txt": "y", "id": 1}])
    assert caught.value.problems == [f"{tmp_path}/train.jsonl:2: no column text; columns: txt, id"]
