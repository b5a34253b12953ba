"""Rendered samples, as the model reads them and with what it learns of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.text import Text

from motet.training.batch import Example
from motet.training.data.dataset import TokenDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED = ("⟦", "⟧")


def preview(datasets: Mapping[str, TokenDataset], tokenizer: PreTrainedTokenizerBase, n: int, console: Console) -> None:
    """Prints the first `n` records of each dataset, in every side and form.

    Tokens that are not learnt are dim on terminals and stand in ⟦…⟧ elsewhere; a weight other than 1 stands behind
    the tokens that have it: `Paris⟨×4⟩`.
    """
    for name, dataset in datasets.items():
        console.print(Text(f"{name}: {summary(dataset)}", "bold"), soft_wrap=True)
        for index in range(min(n, len(dataset))):
            _record(dataset, index, tokenizer, console)


def summary(dataset: TokenDataset) -> str:
    """How much there is of a dataset."""
    share = 100 * dataset.num_counted / dataset.num_tokens
    cut = f", {dataset.num_truncated} truncated" if dataset.num_truncated else ""
    return (
        f"{len(dataset)} records ({dataset.kind}, {dataset.primary} form), {dataset.num_tokens} tokens, "
        f"{dataset.num_counted} of them learnt ({share:.0f} %){cut}"
    )


def _record(dataset: TokenDataset, index: int, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    forms = tuple(dict.fromkeys((dataset.primary, *dataset.views)))
    for side in dataset.sides:
        for form in forms:
            details = [str(dataset.records[index].source), *([side] if side else []), *([form] if forms[1:] else [])]
            if dataset.labels is not None:
                details.append(f"label {dataset.classes[int(dataset.labels[index])]}")
            example = dataset.example(index, form, side)
            console.print(Text(f"── {' · '.join(details)} · {len(example.input_ids)} tokens", "cyan"), soft_wrap=True)
            console.print(marked(example, tokenizer, in_colour=console.is_terminal), soft_wrap=True)


def marked(example: Example, tokenizer: PreTrainedTokenizerBase, *, in_colour: bool) -> Text:
    """The document's text with its masks and weights."""
    text = Text()
    for piece, counts, weight in _runs(example, tokenizer):
        if counts:
            text.append(piece)
            text.append("" if weight == 1 else f"⟨×{weight:g}⟩", "yellow")
        elif in_colour:
            text.append(piece, "dim")
        else:
            text.append(MASKED[0] + piece + MASKED[1])
    return text


def _runs(example: Example, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool, float]]:
    """Adjacent tokens of one mask and weight: their text, whether they count, their weight."""
    marks = [
        (bool(counts), weight if counts else 1.0)
        for counts, weight in zip(example.counted, example.weights, strict=True)
    ]
    start, before = 0, ""
    for (counts, weight), group in groupby(marks):
        start += len(list(group))
        # what the run adds to the text before it: tokens decoded by themselves may lose their space
        text = cast("str", tokenizer.decode(list(example.input_ids[:start])))
        yield text[len(before) :], counts, weight
        before = text
