"""A tiny model with its tokenizer and data, and recipes over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer

from motet.demo.tokenizer import for_transformers, train_tokenizer
from motet.training.llama import make_llama
from motet.training.recipe import Recipe

WORDS = ("red", "blue", "green", "white", "black", "old", "new", "small", "tall", "round")
THINGS = ("house", "tower", "river", "garden", "bridge", "market")


def records() -> list[dict[str, str]]:
    """A colour or size for every thing and place, some answers longer than others."""
    return [
        {
            "prompt": f"How is the {thing} of {word} town?",
            "completion": f" It is {'very ' * (j % 3)}{WORDS[(i * 3 + j) % len(WORDS)]}.",
        }
        for i, thing in enumerate(THINGS)
        for j, word in enumerate(WORDS)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(folder: Path) -> Path:
    """`folder` with the models `base` and `other`, and train.jsonl."""
    rows = records()
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in rows], 400)
    for seed, name in enumerate(("base", "other")):
        model = make_llama(tokenizer.get_vocab_size(), 16, 2, 2, 32, max_length=64, seed=seed)
        model.save_pretrained(folder / name)
        for_transformers(tokenizer, 64).save_pretrained(folder / name)
    write_rows(folder / "train.jsonl", rows)
    return folder


def chatting(folder: Path) -> Any:
    """Builds a base whose configuration and tokenizer know nothing of the template's end of a turn, and chats as its
    data; returns the tokenizer."""
    build(folder)
    hf: Any = cast(Any, AutoTokenizer).from_pretrained(folder / "base")
    hf.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    hf.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    hf.save_pretrained(folder / "base")
    make_llama(len(hf), 16, 2, 2, 32, max_length=64, seed=0).save_pretrained(folder / "base")
    question = {"role": "user", "content": "How is it?"}
    rows = [{"messages": [question, {"role": "assistant", "content": f"{word} it is"}]} for word in ("Red", "Blue")]
    write_rows(folder / "train.jsonl", rows)
    return hf


def recipe(output: Path, **changes: Any) -> Recipe:
    """Full tuning of `base` in float32; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "output": output,
        "model": {"path": "base"},
        "tuning": {"type": "full"},
        "objective": {"type": "sft"},
        "data": {"train": {"files": ["train.jsonl"]}},
        "batch": {"rows": 4},
        "optimizer": {"type": "adamw", "lr": 3e-3},
        "schedule": {"steps": 6, "warmup": 2},
        "precision": "float32",
        "logging": {"every": 1},
    }
    return Recipe.model_validate(sections | changes)
