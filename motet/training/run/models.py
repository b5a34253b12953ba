"""Models and tokenizers of a recipe: from a checkpoint, from its first layers, or fresh from a configuration."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

from motet.models.checkpoint import load_weights, read_config, read_tokenizer
from motet.settings import nearest, offer
from motet.training.recipe import Checkpoint, Fresh
from motet.training.run.errors import RunError
from motet.training.run.sources import locate

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MESSAGE_SHOWN = 300


def load_tokenizer(source: Checkpoint | Fresh, root: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model source.

    Raises:
        RunError: it cannot be loaded.
    """
    path = source.path if isinstance(source, Checkpoint) else source.tokenizer
    revision = source.revision if isinstance(source, Checkpoint) else None
    try:
        return read_tokenizer(locate(path, root), revision)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise RunError(f"the tokenizer of {path} cannot be loaded: {_words(error)}") from error


def load_model(
    source: Checkpoint | Fresh,
    root: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    precision: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model in evaluation mode on the CPU.

    Args:
        source: what to load.
        root: where relative paths start.
        tokenizer: gives a fresh model its vocabulary's size and special tokens; ids must fit every model.
        seed: of a fresh model's weights.
        dtype: of the parameters; by default what the source asks for, float32 for a fresh model.
        precision: what the run computes in, which decides a source's `auto`.

    Raises:
        RunError: nothing there, damaged or incomplete weights, more layers asked for than there are, a
            configuration that transformers refuses.
    """
    if isinstance(source, Fresh):
        model = _fresh(fresh_config(source, tokenizer), seed)
    else:
        with quiet():
            model = _pretrained(source, root, dtype or getattr(torch, source.dtype, "auto"))
        if source.dtype == "auto" and dtype is None and not model.dtype == precision == torch.bfloat16:
            model.float()
    width = cast(int, cast(Any, model.config).get_text_config().vocab_size)
    if width < len(tokenizer):
        raise RunError(f"the model has {width} tokens, but its tokenizer has ids up to {len(tokenizer) - 1}")
    return model.eval()


def fresh_config(source: Fresh, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of a fresh model, with vocabulary and special tokens of the tokenizer.

    Raises:
        RunError: an unknown model type or field, or values that do not fit together.
    """
    fields = {"vocab_size": len(tokenizer)}
    fields |= {name: cast(int, getattr(tokenizer, name)) for name in TOKEN_IDS if getattr(tokenizer, name) is not None}
    settings = {**fields, **source.fresh}
    kind = str(settings.pop("model_type", ""))
    try:
        known = set(cast(Any, AutoConfig.for_model(kind)).to_dict())
    except Exception as error:
        raise RunError(f"model.fresh.model_type: {kind!r} is unknown.{_near_type(kind)}") from error
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise RunError([f"model.fresh.{name}: unknown field.{offer(name, sorted(known))}" for name in unknown])
    try:
        return cast(Any, AutoConfig.for_model(kind, **settings))
    except Exception as error:
        raise RunError(f"model.fresh: {_words(error)}") from error


def _near_type(kind: str) -> str:
    from transformers.models import auto

    known: Any = cast(Any, auto).configuration_auto.CONFIG_MAPPING_NAMES
    return nearest(kind, known) or " A model_type of transformers is expected"


def _fresh(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    try:
        return cast(Any, AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    except Exception as error:
        raise RunError(f"model.fresh: {_words(error)}") from error


def _pretrained(source: Checkpoint, root: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    folder = locate(source.path, root)
    try:
        config = read_config(folder, source.revision)
        if source.layers is not None:
            cut_layers(config, source.layers)
        return load_weights(folder, source.revision, config=config, dtype=dtype)
    except RunError:
        raise
    except Exception as error:  # damaged files raise what their readers raise
        raise RunError(f"{folder} cannot be loaded: {_words(error)}") from error


def cut_layers(config: PretrainedConfig, layers: int) -> None:
    """Makes a configuration that of the first `layers` layers, in place; lists with an entry per layer are cut too.

    Raises:
        RunError: the model has fewer layers.
    """
    text = cast(Any, config).get_text_config()
    before = int(text.num_hidden_layers)
    if layers > before:
        raise RunError(f"{layers} layers are asked for, the model has {before}")
    for name, value in list(cast("dict[str, Any]", vars(text)).items()):
        if isinstance(value, list | tuple) and len(cast("list[Any]", value)) == before:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:MESSAGE_SHOWN]}"


@contextmanager
def quiet() -> Generator[None]:
    """Without the bars and reports of transformers: what is wrong is told by our own errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
