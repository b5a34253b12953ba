"""PEFT adapters merged into their base when a model is loaded: those that no model of the file computes beside its own
weights (`backbones`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from motet.experts.merging import merge
from motet.models.checkpoint import read_config
from motet.operator.sources import Source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

KEYS_SHOWN = 5


def merge_adapter(model: PreTrainedModel, source: Source) -> PreTrainedModel:
    """The base with the adapter's weights added into its own (see `experts.merging`), and with as many tokens as the
    adapter was trained with.

    Raises:
        ValueError: tensors of one that the other lacks, kinds of adapters that cannot be merged, values that are not
            finite.
    """
    from peft import PeftModel

    weights = read_weights(source)
    _resize(model, weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # the merge sees to it
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sees to the layout of GPT-2's layers itself
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft's own matter
        adapted = cast(Any, PeftModel.from_pretrained(model, source.path, revision=source.revision))
    _check_keys(adapted, set(weights), source)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(f"an adapter of kind {kind} cannot be merged into its base's weights")
    merged = merge(adapted)
    log.info("merged the adapter %s into %s", source.path, source.base)
    return merged.eval().requires_grad_(False)


def num_tokens(source: Source) -> int | None:
    """The tokens that an adapter was trained with, None where its weights do not tell. Reads no weights of the base."""
    import torch
    from transformers import AutoModelForCausalLM

    config = cast(Any, read_config(source.checkpoint, source.checkpoint_revision))
    with torch.device("meta"):
        return _num_tokens(cast(Any, AutoModelForCausalLM.from_config(config)), read_weights(source))


def read_weights(source: Source) -> dict[str, Tensor]:
    """The tensors of an adapter's file, by their names in it."""
    from peft.utils import save_and_load

    return cast(Any, save_and_load).load_peft_weights(source.path, device="cpu", revision=source.revision)


def _num_tokens(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> int | None:
    """The size of the vocabulary in the adapter's tensors of the embeddings."""
    for name in _embeddings(model):
        for key, tensor in _tensors_of(name, weights).items():
            if key.endswith("lora_embedding_A"):
                return int(tensor.shape[1])
            if key.endswith("lora_B.weight") or _is_whole(key):
                return int(tensor.shape[0])
    return None


def _embeddings(model: PreTrainedModel) -> dict[str, Any]:
    """The input and output embeddings by name."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules: Iterable[tuple[str, Any]] = cast(Any, model).named_modules()
    return {name: module for name, module in modules if any(module is end for end in ends)}


def _tensors_of(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if f".{name}." in key}


def _is_whole(key: str) -> bool:
    """Whether a tensor of an embedding is its whole weight, not what is added to it."""
    return key.endswith(".weight") and ".lora_" not in key


def _resize(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Gives the base as many tokens as the adapter was trained with; the adapter's file has the rows of the added ones.

    Raises:
        ValueError: it has not.
    """
    size, embeddings = _num_tokens(model, weights), _embeddings(model)
    before = int(cast(Any, model.get_input_embeddings()).weight.shape[0])
    if size is None or size == before:
        return
    parts = {name: _tensors_of(name, weights) for name in embeddings}
    lacking = [
        name
        for name, tensors in parts.items()
        if not any(_is_whole(key) and len(tensor) == size for key, tensor in tensors.items())
    ]
    is_tied = len({id(module.weight) for module in embeddings.values()}) == 1
    if lacking and not (is_tied and len(lacking) < len(parts)):
        raise ValueError(
            f"the adapter was trained with {size} tokens, its base has {before}, and the adapter's file lacks the rows "
            f"of the others in {' and '.join(lacking)}: save it with save_embedding_layers=True"
        )
    cast(Any, model).resize_token_embeddings(size, mean_resizing=False)


def _check_keys(adapted: Any, written: set[str], source: Source) -> None:
    """peft ignores tensors for which the base has no place, and leaves those as they are that the file lacks."""
    from peft.utils import save_and_load

    state = cast(Any, save_and_load)
    wanted: set[str] = set(state.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    places = {key.replace(f".{adapted.active_adapter}", "") for key in adapted.state_dict()}
    homeless = sorted(written - wanted - places)
    missing = sorted(wanted - written)
    for keys, what in ((homeless, "the base has no place for"), (missing, "the adapter lacks")):
        if keys:
            more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
            raise ValueError(f"{what} {', '.join(keys[:KEYS_SHOWN])}{more}: {source.base} is not its base")
