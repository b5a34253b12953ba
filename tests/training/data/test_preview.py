"""What people see of their data."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from motet.training.data.histogram import histogram
from motet.training.data.preview import marked, preview
from tests.training.data.cases import byte_level, demo, load

ROW = {"prompt": "Who?", "completion": "Bob works.", "spans": [[0, 3, 4.0]]}


def test_masks_and_weights_are_marked_in_plain_text(tmp_path: Path) -> None:
    world = demo()
    example = load(tmp_path, [ROW], tokenizer=world).examples()[0]
    assert marked(example, world, in_colour=False).plain == "⟦<|end|> Visitor: Who? Guide:⟧ Bob⟨×4⟩ works.<|end|>"


def test_masks_are_dim_on_terminals(tmp_path: Path) -> None:
    tokenizer = byte_level()
    example = load(tmp_path, [ROW], tokenizer=tokenizer).examples()[0]
    text = marked(example, tokenizer, in_colour=True)
    dim = [text.plain[span.start : span.end] for span in text.spans if span.style == "dim"]
    assert dim == ["<|user|>Who?<|end|>\n<|assistant|>"]


def test_text_of_several_bytes_per_character_is_whole(tmp_path: Path) -> None:
    tokenizer = byte_level()
    example = load(tmp_path, [{"text": "Zoë [b]…[/b]"}], tokenizer=tokenizer).examples()[0]
    assert marked(example, tokenizer, in_colour=False).plain == "⟦Z⟧oë [b]…[/b]<|end|>"


def test_preview_shows_sources_sides_forms_and_labels(tmp_path: Path) -> None:
    world, out = demo(), io.StringIO()
    console = Console(file=out, width=300)
    answers = {"prompt": "A", "chosen": "b", "rejected": "c"}
    pairs = load(tmp_path, [answers] * 3, "pairs", tokenizer=world, views=["none"])
    mail = [{"text": "x", "label": "ham"}, {"text": "y", "label": "spam"}]
    classes = load(tmp_path, mail, "classes", tokenizer=world)
    preview({"pairs": pairs, "mail": classes}, world, 2, console)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("pairs: 3 records (pairs, chat form), ")
    heads = [line.removeprefix(f"── {tmp_path}/train.jsonl:").rsplit(" · ", 1)[0] for line in lines if line[0] == "─"]
    assert heads[:4] == ["1 · chosen · chat", "1 · chosen · none", "1 · rejected · chat", "1 · rejected · none"]
    assert heads[-2:] == ["1 · label ham", "2 · label spam"]
    assert len(heads) == 2 * 4 + 2


def test_histogram_by_hand() -> None:
    assert histogram([1, 1, 2, 4, 4, 4, 4, 12], 4, bins=3, width=4).splitlines() == [
        " 1–4  ████ 7",
        " 5–8   0",
        " 9–12 █ 1",
        "8 documents, 32 tokens: shortest 1, p50 4, p90 12, p95 12, p99 12, longest 12",
        "longer than 4: 1 documents (12.5 %), 8 tokens beyond it",
    ]


def test_histogram_of_one_length() -> None:
    lines = histogram([7, 7]).splitlines()
    assert lines[0] == f"7–7 {'█' * 40} 2"
    assert len(lines) == 2
