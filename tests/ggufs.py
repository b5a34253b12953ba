"""Writes tiny GGUF files as llama.cpp's converter does, from a Qwen2 model and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map, quants
from transformers import Qwen2Config, Qwen2ForCausalLM

from motet.models.tokenizer import Tokenizer

ARCHITECTURE = "qwen2"


def tiny_qwen(tokenizer: Tokenizer, *, seed: int = 0, tied: bool = False) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=tokenizer.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.single_id("<|end|>"),
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).eval()


def write_gguf(
    file: Path,
    model: Qwen2ForCausalLM,
    tokenizer: Tokenizer,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Writes the file; matrices are stored as `kind`.

    Args:
        metadata: further values, or others than the model's own; `.` of their names are written `__`.

    Returns:
        The weights as they can be read back, in float32.
    """
    writer: Any = GGUFWriter(file, ARCHITECTURE)
    _write_shapes(writer, model.config)
    _write_tokenizer(writer, tokenizer)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if kind == GGMLQuantizationType.Q8_0 else LlamaFileType.ALL_F32)
    for name, value in metadata.items():
        _write_value(writer, name.replace("__", "."), value)
    stored = _write_tensors(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _write_shapes(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    vocabulary = sorted(tokenizer.hf.get_vocab().items(), key=lambda item: item[1])
    special = tokenizer.special_ids
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL if i in special else TokenType.NORMAL for _, i in vocabulary])
    writer.add_token_scores([0.0] * len(vocabulary))  # no merges to write: single bytes alone
    writer.add_eos_token_id(tokenizer.single_id("<|end|>"))
    writer.add_bos_token_id(tokenizer.single_id("<|end|>"))
    if tokenizer.has_chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_value(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, int):
        writer.add_uint32(name, value)
    else:
        writer.add_string(name, value)


def _write_tensors(writer: Any, model: Qwen2ForCausalLM, kind: GGMLQuantizationType) -> dict[str, torch.Tensor]:
    names: Any = get_tensor_name_map(MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and cast(Any, model.config).tie_word_embeddings:
            continue
        stem, _, ending = name.rpartition(".")
        values = tensor.numpy().astype(np.float32)
        used = kind if values.ndim == 2 else GGMLQuantizationType.F32
        data: Any = quants.quantize(values, used)
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", data, raw_dtype=used)
        stored[name] = torch.from_numpy(cast(Any, quants.dequantize(data, used)).reshape(values.shape).copy())
    return stored
