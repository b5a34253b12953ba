"""Columns are recognised; every format becomes the same records; bad rows say what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from motet.training.data.errors import DataError, RowError
from motet.training.data.formats import FORMATS, recognise
from motet.training.data.messages import Message
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
    assert only(tmp_path, {"question": "Why?", "answer": "Because.", "value": "x"}).sides == as_text
    with_input = only(tmp_path, {"instruction": "Sort.", "input": "b a", "output": "a b"})
    assert with_input.sides == {"": Answer("Sort.\n\nb a", "a b")}
    conversation = ((), (Message("user", "Why?"), Message("assistant", "Because.")))
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


def implicit(folder: Path, chosen: object, rejected: object, **columns: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) of a row that may have no prompt."""
    sides = only(folder, {"chosen": chosen, "rejected": rejected, **columns}, "pairs").sides
    one, other = sides["chosen"], sides["rejected"]
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    assert one.prompt == other.prompt
    return one.prompt, one.completion, other.completion


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("Why so? Because.", "Why so? No idea.", ("Why so?", " Because.", " No idea.")),
        # the word that both begin with alike stays whole
        (
            "H: left or leave?\n\nA: left.",
            "H: left or leave?\n\nA: leave.",
            ("H: left or leave?\n\nA:", " left.", " leave."),
        ),
        ("Turn left now", "Turn leftover", ("Turn", " left now", " leftover")),
        ("\n\nHuman: a", "\n\nHuman: b", ("\n\nHuman:", " a", " b")),
        # one is the beginning of the other: neither answer may be empty
        ("Say yes, please", "Say yes", ("Say", " yes, please", " yes")),
        ("Say yes ", "Say yes please", ("Say", " yes ", " yes please")),
        ("問題：左", "問題：右", ("問題：", "左", "右")),
    ],
)
def test_the_common_beginning_of_texts_is_the_prompt(
    tmp_path: Path, chosen: str, rejected: str, parts: tuple[str, str, str]
) -> None:
    assert implicit(tmp_path, chosen, rejected) == parts
    dataset = load(tmp_path, [{"chosen": chosen, "rejected": rejected}], "pairs")
    assert dataset.primary == "plain"  # a piece of a text is no user's turn


def test_the_common_messages_are_the_prompt(tmp_path: Path) -> None:
    system, other = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "No."}
    ask, yes, no = Message("user", "Why?"), Message("assistant", "Because."), Message("assistant", "No.")
    assert implicit(tmp_path, [USER, GUIDE], [USER, other]) == ((ask,), (yes,), (no,))
    longer = implicit(tmp_path, [system, USER, GUIDE, USER, GUIDE], [system, USER, GUIDE, USER, other])
    assert longer == ((Message("system", "Be brief."), ask, yes, ask), (yes,), (no,))


def test_prompts_and_answers_of_several_forms(tmp_path: Path) -> None:
    """UltraFeedback's columns: the prompt is a text, and stands in the messages once more."""
    other = {"role": "assistant", "content": "No."}
    ask, yes, no = Message("user", "Why?"), Message("assistant", "Because."), Message("assistant", "No.")
    wanted = ((ask,), (yes,), (no,))
    assert implicit(tmp_path, [USER, GUIDE], [USER, other], prompt="Why?", score_chosen=8.0) == wanted
    assert implicit(tmp_path, [USER, GUIDE], [USER, other], prompt=[USER]) == wanted
    assert implicit(tmp_path, [GUIDE], [other], prompt="Why?") == wanted
    assert implicit(tmp_path, "Because.", "No.", prompt=[USER]) == wanted
    (answer,) = only(tmp_path, {"prompt": "Why?", "completion": [GUIDE]}).sides.values()
    assert answer == Answer((ask,), (yes,))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "Yes.", "rejected": "No."}, "no common beginning that could be the prompt"),
        ({"chosen": [GUIDE], "rejected": [{**GUIDE, "content": "No."}]}, "no common beginning"),
        ({"chosen": [USER, GUIDE], "rejected": [USER]}, "one of chosen and rejected is the other's beginning"),
        (
            {"chosen": [USER, GUIDE], "rejected": [USER, {**GUIDE, "content": "No."}], "prompt": "How?"},
            "not the prompt",
        ),
        ({"chosen": "a b", "rejected": [USER]}, "rejected: expected text, got list"),
    ],
)
def test_pairs_without_a_prompt_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, row, "pairs")


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
    cast(
        "list[tuple[dict[str, Any], str]]",
        [
            ({"text": " "}, "text: the text is empty"),
            ({"text": 3}, "text: expected text, got int"),
            ({"prompt": 3, "completion": "x"}, "prompt: expected text or messages, got int"),
            ({"prompt": "Why?", "completion": 3}, "completion: expected a list of messages, got int"),
            ({"prompt": [USER], "completion": [USER]}, "completion: no message of the assistant"),
            ({"messages": [USER]}, "messages: no message of the assistant"),
            ({"messages": []}, "messages: no messages"),
            ({"messages": "hello"}, "messages: expected a list of messages, got str"),
            ({"messages": [USER, "x"]}, "messages[2]: expected an object with role and content, got str"),
            (
                {"messages": [{"role": "asistant", "content": "x"}]},
                "unknown role 'asistant'; allowed: system, developer,",
            ),
            ({"messages": [{"role": "asistant", "content": "x"}]}, "Did you mean 'assistant'?"),
            ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[2]: the answer is empty"),
            ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[2].content: expected text"),
            ({"messages": [USER, {**GUIDE, "tool_calls": [1]}]}, "messages[2].tool_calls[1]: expected an object with"),
            (
                {"messages": [USER, {**GUIDE, "tool_calls": []}]},
                "messages[2].tool_calls: expected a list of calls, got []",
            ),
            ({"messages": [USER, {**GUIDE, "wieght": 0}]}, "messages[2]: wieght not supported"),
            ({"messages": [USER, {**GUIDE, "wieght": 0}]}, "Did you mean 'weight'?"),
            (
                {"messages": [USER, {**GUIDE, "weight": -1}]},
                "messages[2].weight: -1 is no weight; allowed: 0 (masked), 1",
            ),
            ({"messages": [USER, {**GUIDE, "weight": True}]}, "messages[2].weight: True is no weight"),
            ({"messages": [{**USER, "weight": 1}, GUIDE]}, "messages[1].weight: 1 on a message of the user"),
            ({"messages": [USER, {**GUIDE, "weight": 0}]}, "messages: every answer has weight 0"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image"}]}, GUIDE]},
                "messages[1].content[1]: only parts",
            ),
            ({"messages": [USER, GUIDE], "tools": "[1"}, "tools: invalid JSON"),
            ({"messages": [USER, GUIDE], "tools": [1]}, "tools: expected a list of objects"),
            ({"conversations": [{"from": "humn", "value": "x"}]}, "unknown speaker 'humn'"),
            ({"instruction": "x", "input": 3, "output": "y"}, "input: expected text, got int"),
        ],
    ),
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
    assert message.startswith(
        "columns answer, prompt fit no format of documents; nearest: prompt_completion lacks completion; "
        "question_answer lacks question. "
    )
    for name, form in FORMATS.items():
        assert (name in message) == (form.kind == "documents")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["question", "response"], "nearest: question_answer lacks answer. "),
        (["output", "input"], "nearest: alpaca lacks instruction. "),
        (["mesages", "id"], "nearest: mesages is nearly messages. "),
        (["x"], "nearest: none, no column is known. "),
    ],
)
def test_the_nearest_formats_are_named(columns: list[str], said: str) -> None:
    with pytest.raises(RowError) as caught:
        recognise(columns, "documents")
    assert said in str(caught.value)


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


def test_the_documented_formats_are_those_there_are() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| (`.*`.*) \| `(\w+)` \|", page, re.MULTILINE)
    columns = {name: set(re.findall(r"`(\w+)`", written)) for written, name in rows}
    assert columns.keys() == FORMATS.keys() - {"counterfactual"}  # our own, made by the demo
    for name, written in columns.items():
        assert set(FORMATS[name].columns) <= written <= {*FORMATS[name].columns, *FORMATS[name].optional}
