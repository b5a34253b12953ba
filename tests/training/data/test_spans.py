"""Weights of parts of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from motet.training.data.errors import DataError
from tests.training.data.cases import byte_level, demo, load

ANSWER = "Bob works in Townville."


def weighted(folder: Path, row: dict[str, Any], **options: Any) -> dict[str, float]:
    """The counted tokens' texts and weights; every token occurs once."""
    tokenizer = options.setdefault("tokenizer", demo())
    example = load(folder, [row], **options).examples()[0]
    counted = [i for i, counts in enumerate(example.counted) if counts]
    texts = [str(tokenizer.decode([example.input_ids[i]])) for i in counted]
    assert len(set(texts)) == len(texts)
    return dict(zip(texts, (example.weights[i] for i in counted), strict=True))


def test_numbers_and_kinds_weigh_tokens(tmp_path: Path) -> None:
    row = {"text": "abcd", "spans": [[1, 2, 3.0], [2, 3, "value"]]}
    weights = weighted(tmp_path, row, tokenizer=byte_level(), span_weights={"value": 5.0, "rest": 0.5})
    assert weights == {"b": 3.0, "c": 5.0, "d": 0.5, "<|end|>": 0.5}


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_weights_lie_on_the_answer_in_every_form(tmp_path: Path, template: str) -> None:
    row = {"prompt": "Who?", "completion": ANSWER, "spans": [[0, 3, 7.0], [13, 22, 2.0]]}
    weights = weighted(tmp_path, row, template=template)
    assert weights[" Bob"] == 7.0
    assert weights["."] == 1.0
    assert weights["<|end|>"] == 1.0
    assert weights[" in"] == 1.0
    assert weights[" Townville"] == 2.0


def test_a_token_has_the_weight_of_its_last_character(tmp_path: Path) -> None:
    """Spaces count to what follows them; against the tokenizer's own offsets."""
    tokenizer = demo()
    segments = [("Anna Bell", "subject"), (" was born in ", ""), ("Town  vi", "value"), ("lle.", "")]
    text = "".join(part for part, _ in segments)
    table = {"subject": 2.0, "value": 1.0, "rest": 0.0}
    by_character = [table.get(kind, 0.0) for part, kind in segments for _ in part]
    for i in reversed(range(len(text) - 1)):
        if text[i] == " ":
            by_character[i] = by_character[i + 1]
    backend: Any = tokenizer.backend_tokenizer
    encoding = backend.encode(text, add_special_tokens=False)
    spans, start = list[list[object]](), 0
    for part, kind in segments:
        spans += [[start, start + len(part), kind]] * bool(kind)
        start += len(part)
    example = load(tmp_path, [{"text": text, "spans": spans}], tokenizer=tokenizer, span_weights=table).examples()[0]
    assert list(example.input_ids[1:-1]) == encoding.ids
    assert list(example.weights[1:-1]) == [by_character[stop - 1] for _, stop in encoding.offsets]


def test_answers_that_repeat_the_prompt_are_told_apart(tmp_path: Path) -> None:
    row = {"prompt": "Bob works in Townville.", "completion": ANSWER, "spans": [[0, 3, 7.0]]}
    assert weighted(tmp_path, row)[" Bob"] == 7.0


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ("x", "expected a list"),
        ([[0, 1]], "expected [start, end, weight]"),
        ([[0, 5, 1.0]], "out of bounds; allowed: 0 <= start < end <= 4"),
        ([[-1, 2, 1.0]], "out of bounds"),
        ([[2, 2, 1.0]], "out of bounds"),
        ([[0, True, 1.0]], "out of bounds"),
        ([[0, 1, -0.5]], "no finite number >= 0"),
        ([[0, 1, True]], "no finite number >= 0"),
        ([[0, 3, 1.0], [2, 4, 1.0]], "overlap"),
    ],
)
def test_bad_spans_are_named(tmp_path: Path, spans: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{"text": "abcd", "spans": spans}])
    assert caught.value.problems[0].startswith(f"{tmp_path}/train.jsonl:1: spans: ")
    assert said in caught.value.problems[0]


def test_a_weighed_kind_that_no_record_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{"text": "abcd", "spans": [[0, 1, "value"]]}], span_weights={"valu": 2.0})
    assert caught.value.problems == [
        "data.train.span_weights: no record has a span of the kind 'valu'; found: value. Did you mean 'value'?"
    ]
    with pytest.raises(DataError, match=r"found: none\. To weigh all alike: data\.train\.span_weights=\{\}"):
        load(tmp_path, [{"text": "abcd"}], span_weights={"value": 0.1})


def test_spans_need_one_answer_that_the_template_leaves_alone(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]
    with pytest.raises(DataError, match="several answers"):
        load(tmp_path, [{"messages": messages, "spans": [[0, 1, 2.0]]}])
    upper = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes the answer's text"):
        load(tmp_path, [{"prompt": "a", "completion": "b", "spans": [[0, 1, 2.0]]}], tokenizer=byte_level(upper))
