"""The composite on vLLM's Model Runner V2: which request sits in which row, by hooks that vLLM offers for it.

A preempted request loses its slot, and comes back as a new one that has read its prompt and what it had drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from motet.engines.vllm.internals import touch
from motet.engines.vllm.requests import row_or_fault
from motet.engines.vllm.slot_sampler import Slots, SlotSampler
from motet.engines.vllm.table import table_of

_DefaultModelState: Any = touch("DefaultModelState")


class CompositeState(_DefaultModelState):
    """Named by the composite's `get_model_state_cls`."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        _DefaultModelState.__init__(self, vllm_config, model, encoder_cache, device)
        self._table = table_of(vllm_config.compilation_config.static_forward_context)
        self._slots = Slots(self.max_num_reqs)
        self._table.batch = self._slots
        # always at the same address: a captured graph reads here the rows of the step that it is replayed for
        self._rows = torch.zeros(self.max_num_tokens, dtype=torch.int32, device=device)
        self._tokens = torch.arange(self.max_num_tokens, dtype=torch.int32, device=device)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        _DefaultModelState.add_request(self, req_index, new_req_data)
        known: list[int] = new_req_data.prefill_token_ids
        prompt, output = known[: new_req_data.prompt_len], known[new_req_data.prompt_len :]
        params = new_req_data.sampling_params
        row = params and row_or_fault(params.extra_args, prompt, output, list(self._table.members), self._table.ends)
        self._slots.add(new_req_data.req_id, req_index, row, output)

    def remove_request(self, req_id: str) -> None:
        _DefaultModelState.remove_request(self, req_id)
        self._slots.remove(req_id)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs = _DefaultModelState.prepare_inputs(self, input_batch, req_states)
        size, count = input_batch.num_reqs, input_batch.num_tokens_after_padding
        self._slots.arrange(input_batch.idx_mapping_np[:size].tolist())
        ends = input_batch.query_start_loc[1 : size + 1].contiguous()
        rows = torch.searchsorted(ends, self._tokens[:count], right=True, out_int32=True)
        self._rows[:count] = rows.clamp_(max=size - 1)
        return {**inputs, "rows": self._rows[:count]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs = _DefaultModelState.prepare_dummy_inputs(self, num_reqs, num_tokens)
        return {**inputs, "rows": self._rows[:num_tokens]}

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        """Ours, around vLLM's, and around the one that verifies drafts where there are any."""
        rejection = None
        speculative = self.vllm_config.speculative_config
        if speculative is not None:
            verifier = touch("RejectionSamplerV2")(sampler, speculative, self.device)
            rejection = SlotSampler(verifier, self._table, self._slots)
        return SlotSampler(sampler, self._table, self._slots), rejection
