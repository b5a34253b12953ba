"""Tokenizers and datasets that these tests share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from motet.demo.tokenizer import for_transformers, train_tokenizer
from motet.training.batch import PromptForm
from motet.training.data.dataset import TokenDataset, load_dataset
from motet.training.objectives.objective import RecordKind
from motet.training.recipe import Recipe
from tests.fakes import byte_tokenizer

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = ("Where was Anna Bell born?", "Anna Bell was born in Townville.", "Bob works as a baker.", "Visitor: Guide:")


def byte_level(chat_template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """One token per byte; `<|end|>` is BOS and EOS, which the tokenizer does not set before texts by itself."""
    return byte_tokenizer(chat_template=chat_template).hf


@lru_cache(1)
def _trained() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, 400)


def demo() -> PreTrainedTokenizerBase:
    """The demo world's tokenizer and chat form: no end mark in the template, a space before answers."""
    return for_transformers(_trained(), 512)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(*, batch: Mapping[str, Any] | None = None, seed: int = 0, **data: Any) -> Recipe:
    """A recipe with one dataset, `train`, in `train.jsonl`."""
    return Recipe.model_validate({
        "output": "out",
        "seed": seed,
        "model": {"path": "nowhere"},
        "objective": {"type": "sft"},
        "data": {"train": {"files": ["train.jsonl"], **data}},
        "batch": batch or {},
        "schedule": {"steps": 1},
    })  # fmt: skip


def load(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] | None,
    kind: RecordKind = "documents",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    views: Sequence[PromptForm] = (),
    batch: Mapping[str, Any] | None = None,
    **data: Any,
) -> TokenDataset:
    """The dataset of `rows`, or of the files in `data` where there are none."""
    if rows is not None:
        write_jsonl(folder / "train.jsonl", rows)
    setting = recipe(batch=batch, **data)
    return load_dataset(
        "train",
        setting.data["train"],
        kind,
        tokenizer=tokenizer or byte_level(),
        root=folder,
        batching=setting.batch,
        views=views,
    )


def shown(
    tokenizer: PreTrainedTokenizerBase, dataset: TokenDataset, form: PromptForm | None = None, index: int = 0
) -> str:
    """A document's text (the first one's) with its counted tokens in brackets, adjacent ones together."""
    example = dataset.example(index, form)
    text = ""
    for token, counts in zip(example.input_ids, example.counted, strict=True):
        piece = cast("str", tokenizer.decode([token]))
        text += f"[{piece}]" if counts else piece
    return text.replace("][", "")
