"""Tiny random sequence classifiers over bytes, and what they say of a text in float64, from the formula."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from motet.models.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer
from tests.tiny import SHAPE

CONTEXT = 32
LABELS = ("harmless", "forget", "risky")
CLS, SEP = "<|user|>", "<|assistant|>"


def surrounded() -> Tokenizer:
    """Bytes between two special tokens, as BERT reads them."""
    tokenizer = byte_tokenizer()
    ids = {token: tokenizer.single_id(token) for token in (CLS, SEP)}
    cast(Any, tokenizer.backend).post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(token, place) for token, place in ids.items() if place is not None]
    )
    return tokenizer


def save_classifier(
    folder: Path, kind: str = "bert", *, labels: Sequence[str] = LABELS, seed: int = 0, **config: Any
) -> Path:
    """`kind`: "bert" with special tokens around a text, or "llama" without any."""
    torch.manual_seed(seed)
    tokenizer = surrounded() if kind == "bert" else byte_tokenizer()
    own = {"id2label": dict(enumerate(labels)), "label2id": {label: k for k, label in enumerate(labels)}, **config}
    shape: dict[str, Any] = {**SHAPE, "vocab_size": tokenizer.size, "max_position_embeddings": CONTEXT, **own}
    model: PreTrainedModel
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(**shape))
    else:
        shape["pad_token_id"] = None
        model = LlamaForSequenceClassification(LlamaConfig(**shape))
    model.save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
    return folder


def expected(folder: Path, windows: Sequence[Sequence[int]], labels: Sequence[str]) -> float:
    """max over windows of Σ over labels of exp(z) / Σ over all exp(z), in float64."""
    read = cast(Any, AutoModelForSequenceClassification).from_pretrained
    model: Any = read(folder, dtype=torch.float64).eval()
    places: list[int] = [model.config.label2id[label] for label in labels]
    scores: list[float] = []
    with torch.no_grad():
        for window in windows:
            shares: torch.Tensor = model(input_ids=torch.tensor([list(window)])).logits[0].exp()
            scores.append(float(shares[places].sum() / shares.sum()))
    return max(scores)
