"""PEFT adapters: merged into their base when a model is loaded, so that serving them costs what the base costs."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, cast

from motet.server.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

KEYS_SHOWN = 5


def merge_adapter(model: PreTrainedModel, source: Source) -> PreTrainedModel:
    """The base with the adapter's weights added into its own.

    Raises:
        ValueError: tensors of one that the other lacks, kinds of adapters that cannot be merged, values that are not
            finite.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft's own matter
        adapted = cast(Any, PeftModel.from_pretrained(model, source.path, revision=source.revision))
    _check_keys(adapted, source)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(f"an adapter of kind {kind} cannot be merged into its base's weights")
    merged = cast("PreTrainedModel", adapted.merge_and_unload(safe_merge=True))
    log.info("merged the adapter %s into %s", source.path, source.base)
    return merged.eval().requires_grad_(False)


def _check_keys(adapted: Any, source: Source) -> None:
    """peft ignores tensors for which the base has no place, and leaves those as they are that the file lacks."""
    from peft.utils import save_and_load

    state = cast(Any, save_and_load)
    written: set[str] = set(state.load_peft_weights(source.path, device="cpu", revision=source.revision))
    wanted: set[str] = set(state.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    homeless = sorted(written - wanted - set(adapted.state_dict()))
    missing = sorted(wanted - written)
    for keys, what in ((homeless, "the base has no place for"), (missing, "the adapter lacks")):
        if keys:
            more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
            raise ValueError(f"{what} {', '.join(keys[:KEYS_SHOWN])}{more}: {source.base} is not its base")
