"""The composer's step as the results of the V1 runner's sampler and rejection sampler."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from motet.engines.vllm.internals import touch
from motet.engines.vllm.table import Step, Table
from motet.engines.vllm.verification import verify


class StepSampler:
    """Stands for vLLM's sampler: takes the step that the last logits have drawn; all else is vLLM's.

    Args:
        inner: vLLM's own, which draws where a request names no composition.
    """

    def __init__(self, inner: Any, table: Table) -> None:
        self._inner = inner
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        step = self._table.take_step()
        if step is None:
            return self._inner(logits, sampling_metadata, *args, **kwargs)
        theirs = self._inner(logits, sampling_metadata, *args, **kwargs) if step.others else None
        return output_of(step.tokens[:, :1], step, theirs)


class StepVerifier:
    """Stands for vLLM's rejection sampler: drafts are verified by the composer's own draws."""

    def __init__(self, inner: Any, table: Table) -> None:
        self._inner = inner
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any) -> Any:
        step = self._table.take_step()
        if step is None:
            return self._inner(metadata, draft_probs, logits, sampling_metadata)
        counts = torch.tensor(metadata.num_draft_tokens, device=step.tokens.device)
        verified = verify(step.tokens[:, 0], metadata.draft_token_ids, counts, metadata.max_spec_len)
        places = verified.places.flatten()
        firsts = accumulate((count + 1 for count in metadata.num_draft_tokens[:-1]), initial=0)
        others = tuple(number for number, first in enumerate(firsts) if first in step.others)
        theirs = self._inner(metadata, draft_probs, logits, sampling_metadata) if others else None
        return output_of(verified.tokens, Step(step.tokens[places], step.logprobs[places], others), theirs)


def output_of(tokens: Tensor, step: Step, theirs: Any) -> Any:
    """vLLM's SamplerOutput.

    Args:
        tokens: (B, S) of B requests.
        step: the numbers of B · S tokens; `others` are requests.
        theirs: vLLM's own output of the same requests, of which the `others` are taken.
    """
    if theirs is None:
        return touch("SamplerOutput")(tokens.to(torch.int32), _logprobs(step.tokens, step.logprobs))
    others = list(step.others)
    tokens = tokens.to(torch.int32).clone()
    tokens[others] = theirs.sampled_token_ids[others].to(torch.int32)
    per = tokens.shape[1]
    places = [request * per + i for request in others for i in range(per)]
    return touch("SamplerOutput")(tokens, _logprobs(*step.reported(theirs.logprobs_tensors, places)))


def _logprobs(tokens: Tensor, logprobs: Tensor) -> Any:
    """The rank of the drawn token is not told: nobody of ours asks for it, and it would take another pass."""
    ranks = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    return touch("LogprobsTensors")(tokens.to(torch.int32), logprobs, ranks)
