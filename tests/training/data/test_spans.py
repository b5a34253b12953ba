"""Weights of parts of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from motet.training.data.errors import DataError
from motet.training.demo.documents import Encoder, Tag
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


def test_weights_are_those_of_the_demo_encoder(tmp_path: Path) -> None:
    """A token has the tag of its last character, spaces that of what follows them."""
    tokenizer = demo()
    segments = [("Anna Bell", Tag.SUBJECT), (" was born in ", Tag.PLAIN), ("Town  vi", Tag.VALUE), ("lle.", Tag.PLAIN)]
    backend: Any = tokenizer.backend_tokenizer
    ids, tags = Encoder(backend).document(segments)
    spans: list[list[object]] = []
    start = 0
    for text, tag in segments:
        spans.append([start, start + len(text), tag.name])
        start += len(text)
    table = {tag.name: float(tag) for tag in (Tag.VALUE, Tag.SUBJECT, Tag.PLAIN)}
    row = {"text": "".join(text for text, _ in segments), "spans": spans}
    example = load(tmp_path, [row], tokenizer=tokenizer, span_weights=table | {"rest": 0.0}).examples()[0]
    assert list(example.input_ids[1:]) == ids
    assert list(example.weights[1:]) == [float(tag) for tag in tags]


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
        "data.train.span_weights: no record has a span of the kind 'valu'; found: value; nearest: value"
    ]


def test_spans_need_one_answer_that_the_template_leaves_alone(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]
    with pytest.raises(DataError, match="several answers"):
        load(tmp_path, [{"messages": messages, "spans": [[0, 1, 2.0]]}])
    upper = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes the answer's text"):
        load(tmp_path, [{"prompt": "a", "completion": "b", "spans": [[0, 1, 2.0]]}], tokenizer=byte_level(upper))
