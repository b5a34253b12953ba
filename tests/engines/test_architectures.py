"""Architectures beside those of `tests.tiny`: what is served is served rightly, what is not is refused shortly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, EngineSettings, ModelLoadError, load_member
from motet.models.checkpoint import read_config
from tests.tiny import SHAPE, VOCAB

HEADS: dict[str, Any] = {"head_dim": 12}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED: dict[str, Any] = {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
SHARED: dict[str, Any] = {
    **HEADS,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 6,
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": 64,
}
SERVED: dict[str, dict[str, Any]] = {
    "Cohere2Config": {"sliding_window": 9},
    "DeepseekV2Config": {**ROUTED, **LATENT, "topk_method": "greedy"},
    "DeepseekV3Config": {**ROUTED, **LATENT, "first_k_dense_replace": 1},
    "GPTNeoXConfig": {},
    "Gemma3TextConfig": {**HEADS, "sliding_window": 20, "num_hidden_layers": 7},
    "Gemma3nTextConfig": {**SHARED, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4},
    "Gemma4TextConfig": {**SHARED, "global_head_dim": 12},
    "Glm4MoeConfig": {**ROUTED, **HEADS, "first_k_dense_replace": 1},
    "GptOssConfig": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9},
    "GraniteConfig": {},
    "GraniteMoeConfig": {"num_local_experts": 4},
    "MixtralConfig": {"num_local_experts": 4},
    "NemotronConfig": {},
    "OPTConfig": {"ffn_dim": 96, "word_embed_proj_dim": 48},
    "Olmo2Config": {},
    "OlmoeConfig": {"num_experts": 8, "num_experts_per_tok": 2},
    "Phi3Config": {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    "PhiConfig": {},
    "PhimoeConfig": {"num_local_experts": 4},
    "Qwen3Config": HEADS,
    "Qwen3MoeConfig": {**HEADS, **EXPERTS, "num_experts": 8},
    "Starcoder2Config": {},
}


def saved(config: str, folder: Path) -> str:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    made: Any = auto.from_config(getattr(transformers, config)(**{**SHAPE, **SERVED[config]}))
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):  # which nothing initialises
            parameter.data.normal_()
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", SERVED)
def test_an_architecture_loads_in_both_dtypes(config: str, tmp_path: Path) -> None:
    """Nemotron hands no keyword to its attention; routers of random weights fall another way at every rounding."""
    path = saved(config, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        load_member("m", path, dtype=dtype)


@pytest.mark.parametrize("config", ["Gemma3nTextConfig", "Gemma4TextConfig", "NemotronConfig"])
def test_a_prompt_in_several_chunks(config: str, tmp_path: Path) -> None:
    """Layers that share others' keys and values lost the queries of a second chunk, and the answer was a 500."""
    path = saved(config, tmp_path)
    core = EngineCore({"m": load_member("m", path, dtype=torch.float32)}, EngineSettings(idle_prefill_chunk=40))
    ids = [3 + (7 * i * i + i) % (VOCAB - 3) for i in range(150)]
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    core.add(core.group(GenerationRequest("r", single("m"), (tuple(ids),), sampling)))
    outputs = [output for result in iter(core.step, None) for _, output in result.outputs]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        batch = torch.tensor([[*ids, *(output.token for output in outputs)]])
        logprobs = model(batch, use_cache=False).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    assert [output.token for output in outputs] == logprobs.argmax(-1).tolist()
    for output, expected in zip(outputs, logprobs.amax(-1), strict=True):
        assert output.logprob == pytest.approx(float(expected), abs=1e-4)


def test_a_context_that_longrope_cuts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="motet"):
        member = load_member("phi", saved("Phi3Config", tmp_path), dtype=torch.float32)
    assert member.info.max_model_len == 64
    assert caplog.messages == [
        "phi: its context ends at 64 tokens, where longrope changes the factors of whole batches"
    ]


SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION: dict[str, Any] = {**SMALL, "image_size": 28, "patch_size": 14}


def llava() -> PreTrainedModel:
    text = transformers.LlamaConfig(**SHAPE)
    config = transformers.LlavaConfig(text_config=text, vision_config=transformers.CLIPVisionConfig(**VISION))
    return transformers.LlavaForConditionalGeneration(config)


def t5() -> PreTrainedModel:
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (llava, "LlavaForConditionalGeneration is a model of text and other media: only causal language models"),
        (t5, "T5ForConditionalGeneration is an encoder-decoder: only causal language models"),
    ],
)
def test_other_kinds_are_refused_shortly(make: Callable[[], PreTrainedModel], reason: str, tmp_path: Path) -> None:
    """It took three thousand characters, all of them names of classes."""
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        read_config(str(tmp_path))
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        load_member("m", str(tmp_path))
    assert len(str(refusal.value)) < 300
