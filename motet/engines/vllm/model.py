"""The composite: one vLLM model per distinct checkpoint, side by side over the same tokens.

Every member's attention layers have their own KV cache under vLLM's one block table. A step runs the members that its
requests read (`Table.running`). `forward` returns all hidden states side by side, and in extra columns which row of the
batch, position and token they belong to, bit-cast into the model's dtype: `compute_logits` then needs no state but the
table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from motet.engines.vllm.composition import Composer, Matchers
from motet.engines.vllm.config import CompositeConfig, distinct
from motet.engines.vllm.internals import touch
from motet.engines.vllm.stages import Handover
from motet.engines.vllm.table import table_of
from motet.kernels.dispatch import choose_kernels

NUM_COLUMNS = 3  # int32: row of the batch, position, token


class MotetCompositeForCausalLM(nn.Module):
    """See vLLM's interface of models: `forward` → hidden states, `compute_logits` → what is sampled."""

    supports_pp = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config: CompositeConfig = vllm_config.model_config.hf_config
        self._load_config: Any = vllm_config.load_config
        self._sources, numbers = distinct(config.members)
        self._vocab_size = int(cast(Any, config).vocab_size)
        self._dtype: torch.dtype = vllm_config.model_config.dtype
        self._columns = NUM_COLUMNS * torch.int32.itemsize // self._dtype.itemsize
        self._widths: list[int] = []
        self.members = nn.ModuleDict()
        for number, source in enumerate(self._sources):
            self.members[f"m{number}"] = self._member(vllm_config, number, *source)
        self._handover = Handover(dict(self.members.items()), self._dtype)
        self._table = table_of(vllm_config.compilation_config.static_forward_context)
        self._table.configure(numbers, config.ends, skips=config.skips)
        matchers = Matchers(config.members, self._vocab_size)
        self._composer = Composer(self._table, choose_kernels(torch.device(vllm_config.device_config.device)), matchers)

    def _member(self, vllm_config: Any, number: int, path: str, revision: str | None) -> nn.Module:
        """One model under a prefix of its own. vLLM wants exactly one integer in a layer's name: "m0", not "0"."""
        hf_config = touch("get_config")(path, trust_remote_code=False, revision=revision)
        text = hf_config.get_text_config()
        own = copy.copy(vllm_config)
        # the window lies in a cache configuration that members would share: a member would silently lose its own
        own.cache_config = copy.copy(vllm_config.cache_config)
        own.cache_config.sliding_window = _window(text)
        own.quant_config = _quant_config(own, hf_config, path, revision)
        self._widths.append(int(text.hidden_size))
        with touch("set_model_tag")(f"motet_m{number}"):
            return touch("init_vllm_registered_model")(
                own, prefix=f"members.m{number}", hf_config=hf_config, architectures=hf_config.architectures
            )

    @staticmethod
    def get_model_state_cls() -> type:
        """What Model Runner V2 calls about its batch."""
        from motet.engines.vllm.state import CompositeState

        return CompositeState

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return cast(Any, self.members["m0"]).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        rows: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """(n, Σ widths + columns) of n tokens; on a stage that is not the last what the next one needs of them.

        Args:
            rows: (n,) from a runner that gives them (`state`).
        """
        parts = self._handover.cut(intermediate_tensors)
        hidden = {
            name: self.members[name](input_ids, positions, parts[name], None)
            for name in (f"m{number}" for number in self._table.running())
        }
        if isinstance(next(iter(hidden.values())), touch("IntermediateTensors")):
            return self._handover.join(hidden)
        of_tokens = _rows_of_tokens(positions) if rows is None else rows
        places = torch.stack([of_tokens, positions, input_ids], -1).to(torch.int32).view(self._dtype)
        columns = [
            hidden.get(name, places.new_zeros(len(places), width))
            for name, width in zip(self.members, self._widths, strict=True)
        ]
        return torch.cat([*columns, places], -1)

    def make_empty_intermediate_tensors(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
        """What a stage that is not the first is warmed up with."""
        return self._handover.empty(batch_size, device)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The distributions behind n positions (n, V), see `Composer`; None where this worker holds no logits."""
        *hidden, columns = cast("tuple[Tensor, ...]", hidden_states.split([*self._widths, self._columns], -1))
        logits = [
            cast(Any, self.members[f"m{number}"]).compute_logits(hidden[number].contiguous())
            for number in self._table.running()
        ]
        if any(part is None for part in logits):
            return None
        places = cast("list[list[int]]", columns.contiguous().view(torch.int32).tolist())
        rows, positions, tokens = ([place[i] for place in places] for i in range(NUM_COLUMNS))
        return self._composer([part[:, : self._vocab_size] for part in logits], rows, positions, tokens)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Each member from its own checkpoint; the composite has none."""
        loader = touch("DefaultModelLoader")(self._load_config)
        loaded: set[str] = set()
        for (name, member), (path, revision) in zip(self.members.items(), self._sources, strict=True):
            source = loader.Source(path, revision=revision)
            names = cast(Any, member).load_weights(loader._get_weights_iterator(source))
            loaded |= {f"members.{name}.{weight}" for weight in names or ()}
        return loaded


def _quant_config(vllm_config: Any, hf_config: Any, path: str, revision: str | None) -> Any:
    """How a member is quantised, vLLM's own QuantizationConfig; None where it is not. vLLM knows one quantisation per
    engine, but builds a draft model under a configuration of its own; so do the members.

    Raises:
        ValueError: the installed vLLM does not know the method, or not on this device or in this dtype.
    """
    model = vllm_config.with_hf_config(hf_config, architectures=hf_config.architectures).model_config
    model.model, model.revision = path, revision
    model._verify_quantization()
    return vllm_config.get_quantization_config(model, vllm_config.load_config)


def _window(text: Any) -> int | None:
    """The window of all layers, None where there is none or where each layer knows its own."""
    kinds: set[str] = set(getattr(text, "layer_types", None) or ())
    if kinds - {"sliding_attention"}:
        return None
    return getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None


def _rows_of_tokens(positions: Tensor) -> Tensor:
    """(n,) the batch row of each token, 0 in a warm-up without a batch."""
    metadata = touch("get_forward_context")().attn_metadata
    if not metadata:
        return torch.zeros_like(positions)
    layers = cast("dict[str, Any]", metadata[0] if isinstance(metadata, list) else metadata)
    starts = next(iter(layers.values())).query_start_loc
    tokens = torch.arange(positions.shape[0], device=starts.device, dtype=starts.dtype)
    return torch.searchsorted(starts[1:].contiguous(), tokens, right=True).clamp_(max=max(starts.shape[0] - 2, 0))
