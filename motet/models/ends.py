"""The tokens that end an answer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, cast


def end_token_ids(*sources: Any) -> tuple[int, ...]:
    """The tokens that end an answer: all that the model's generation configuration, its configuration and its tokenizer
    name, since converted and fine-tuned checkpoints often have the end of a turn in one of them alone.

    Args:
        sources: whatever has an `eos_token_id`: None, an id or a list of ids; None for a source that is missing.
    """
    named = [getattr(source, "eos_token_id", None) for source in sources]
    lists = [cast("list[int]", ids) if isinstance(ids, list) else [int(ids)] for ids in named if ids is not None]
    return tuple(dict.fromkeys(chain.from_iterable(lists)))


def model_ends(model: Any) -> tuple[int, ...]:
    """The ends that the configurations of a transformers model name (see `end_token_ids`)."""
    return end_token_ids(getattr(model, "generation_config", None), model.config, model.config.get_text_config())


def ends_within(vocab_size: int, *ends: Iterable[int]) -> tuple[int, ...]:
    """Ends of several sources, each once, without those that the model can never say."""
    return tuple(dict.fromkeys(token for token in chain.from_iterable(ends) if 0 <= token < vocab_size))
