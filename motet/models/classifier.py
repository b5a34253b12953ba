"""A sequence classifier: how probable some of its labels are for a text, read through transformers.

A checkpoint whose head was never trained is refused: transformers alone would make one up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from motet.models import files
from motet.models.checkpoint import native, read_tokenizer
from motet.models.tokenizer import Tokenizer
from motet.settings import nearest

HEAD = "ForSequenceClassification"
# tokens of a window, where nobody asks for more: longer ones are slow, and few were trained on them
MOST_CONTEXT = 2048
MULTI_LABEL = "multi_label_classification"
OVERLAP = 4  # one token of so many is also in the next window: a phrase is not cut by both


@dataclass(frozen=True)
class Classifier:
    """Computed on the CPU in float32, one window at a time; threads may share it.

    `begin` and `end` are what the tokenizer puts around a text. Special tokens that a text spells are read as letters.
    """

    model: Any
    tokenizer: Tokenizer
    labels: tuple[int, ...]  # those that count
    context: int  # tokens of a window, `begin` and `end` included
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, labels: Sequence[str], context: int | None = None) -> Classifier:
        """
        Args:
            folder: config.json, safetensors and a fast tokenizer.
            labels: those whose probabilities are summed, by their names in config.json.
            context: tokens of a window; None: what the checkpoint says, `MOST_CONTEXT` at most.

        Raises:
            OSError, ValueError: no classifier, unknown labels, weights that are missing, a context that it cannot read.
        """
        config = _read_config(folder)
        chosen = _label_ids(config, labels)
        tokenizer = Tokenizer(read_tokenizer(str(folder)))
        cast(Any, tokenizer.backend).encode_special_tokens = True
        begin, end = _surroundings(tokenizer)
        length = _context(config, tokenizer, context)
        if length < len(begin) + len(end) + OVERLAP:
            raise ValueError(f"context: a window of {length} tokens holds no text")
        found = cls(_load_weights(folder), tokenizer, chosen, length, begin, end)
        found._check_context()
        return found

    @property
    def room(self) -> int:
        """Tokens of a text that one window holds."""
        return self.context - len(self.begin) - len(self.end)

    def windows(self, text: str, most: int) -> list[list[int]]:
        """All of a text, in windows of which each begins within the one before; the last one ends with the text.

        Raises:
            TextTooLong: more windows than `most`. Of a text that no so many could hold, before it is tokenized.
        """
        if len(text) > most * self.room * self.tokenizer.longest:
            raise TextTooLong
        ids = self.tokenizer.encode(text)
        room, step = self.room, self.room - self.room // OVERLAP
        count = 1 + max(0, math.ceil((len(ids) - room) / step))
        if count > most:
            raise TextTooLong
        begins = [max(0, min(k * step, len(ids) - room)) for k in range(count)]
        return [[*self.begin, *ids[start : start + room], *self.end] for start in begins]

    def probability(self, window: Sequence[int]) -> float:
        """Of the labels that count, in a window that is not empty: the sum of their shares in the softmax over all
        labels; of a multi-label classifier the one label's sigmoid."""
        import torch

        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([list(window)])).logits[0].double()
        if self.model.config.problem_type == MULTI_LABEL:
            return float(torch.sigmoid(logits[self.labels[0]]))
        return float(torch.softmax(logits, dim=-1)[list(self.labels)].sum())

    def _check_context(self) -> None:
        """Raises ValueError: a window of the greatest length is more than the positions that the model has."""
        filler = self.tokenizer.encode("a") or [*self.begin, *self.end]
        try:
            self.probability([*self.begin, *(filler * self.context)[: self.room], *self.end])
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"context: the classifier cannot read {self.context} tokens at once: {error}") from error


class TextTooLong(ValueError):
    """A text has more windows than are read."""


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    found = list(files.problems(folder))
    if found:
        raise ValueError("; ".join(found))
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no safetensors: no other weights are read")
    config = native(str(folder), cast(Any, AutoConfig).from_pretrained, folder)
    name = (config.architectures or [type(config).__name__])[0]
    if not name.endswith(HEAD):
        raise ValueError(f"{name} is no sequence classifier: its name does not end with {HEAD}")
    return config


def _label_ids(config: Any, labels: Sequence[str]) -> tuple[int, ...]:
    known: dict[str, int] = {str(name): int(place) for place, name in config.id2label.items()}
    for label in labels:
        if label not in known:
            near = nearest(label, known)
            raise ValueError(f"labels: the classifier has no label {label!r}.{near} Labels: {', '.join(known)}")
    is_multi = config.problem_type == MULTI_LABEL
    if len(known) < 2 and not is_multi:
        raise ValueError("it has one label alone, which is a regression, and no probability")
    if is_multi and len(labels) > 1:
        raise ValueError("labels: it is a multi-label classifier, whose probabilities have no sum; name one label")
    if not is_multi and len(set(labels)) == len(known):
        raise ValueError("labels: these are all labels, whose probability is always 1; leave out what is harmless")
    return tuple(dict.fromkeys(known[label] for label in labels))


def _surroundings(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    alone, whole = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return tuple(whole[:start]), tuple(whole[start + len(alone) :])
    raise ValueError("its tokenizer changes a text beside the special tokens that it adds")


def _context(config: Any, tokenizer: Tokenizer, asked: int | None) -> int:
    positions = cast("int | None", getattr(config.get_text_config(), "max_position_embeddings", None))
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(f"context: {asked} is more than the {positions} positions of the classifier")
        return asked
    longest = int(cast(Any, tokenizer.hf).model_max_length)
    return min(MOST_CONTEXT, longest, MOST_CONTEXT if positions is None else positions)


def _load_weights(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    read = cast(Any, AutoModelForSequenceClassification).from_pretrained
    model, report = native(
        str(folder), read, folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    lost = sorted(map(str, (*report.get("missing_keys", ()), *report.get("mismatched_keys", ()))))
    if lost:
        raise ValueError(f"it lacks or misshapes {', '.join(lost[:5])}: what decides was never trained")
    return model.eval()
