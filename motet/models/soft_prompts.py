"""Soft prompts as PEFT keeps them: an adapter's folder whose weights are the embeddings of its virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motet.models.files import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

KINDS = ("PROMPT_TUNING", "P_TUNING")  # of the second what its encoder has made is stored, and nothing else
EMBEDDINGS = "prompt_embeddings"  # the tensor's name


def virtual_tokens(config: Mapping[str, Any]) -> int | None:
    """Of an adapter's configuration, None where it is no soft prompt.

    Raises:
        ValueError: a soft prompt that does not say how many it has.
    """
    if config.get("peft_type") not in KINDS:
        return None
    number: object = config.get("num_virtual_tokens")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"the soft prompt's num_virtual_tokens is {number!r}; a number above 0 is expected")
    return number


def read_soft_prompt(path: str, revision: str | None, tokens: int) -> Tensor:
    """The embeddings (P, H) of a folder or hub id, as they are stored.

    Args:
        tokens: P, as the configuration says.

    Raises:
        ValueError: other tensors, or another number of rows. OSError: no file.
    """
    from peft.utils import save_and_load

    weights = cast("dict[str, Tensor]", cast(Any, save_and_load).load_peft_weights(path, "cpu", revision=revision))
    if EMBEDDINGS not in weights:
        raise ValueError(f"the soft prompt's weights hold {', '.join(sorted(weights)) or 'nothing'}, no {EMBEDDINGS}")
    rows = weights[EMBEDDINGS]
    if rows.ndim != 2 or len(rows) != tokens:
        raise ValueError(f"the soft prompt's {EMBEDDINGS} have the shape {list(rows.shape)}, not {tokens} rows")
    return rows


def write_soft_prompt(folder: Path, rows: Tensor, model: PreTrainedModel, base: str) -> None:
    """A folder that PEFT loads, too.

    Args:
        rows: (P, H).
        model: in front of which they were trained.
        base: what the configuration calls it.
    """
    from peft import PromptTuningConfig
    from safetensors import torch as safetensors

    text = model.config.get_text_config()
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(rows),
        token_dim=rows.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=text.num_attention_heads,
        num_layers=text.num_hidden_layers,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    cast(Any, config).save_pretrained(str(folder))
    safetensors.save_file({EMBEDDINGS: rows.detach().cpu().contiguous()}, folder / ADAPTER_WEIGHTS[0])
