"""The composer's step as the results of the V1 runner's sampler and rejection sampler; `verify` serves both runners.

Drafts are verified without loss: what would have been drawn anyway is taken, as far as the drafts have guessed it. The
draw behind every position is the one that this position gets without speculation (the same distribution and the same
uniform number), so answers do not depend on the drafts, only the number of steps does. For greedy requests this is the
rule of Leviathan et al. 2023 (arXiv:2211.17192); for random ones it accepts less often than their test of ratios, and
in return keeps seeds reproducible.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from motet.engines.vllm.internals import touch
from motet.engines.vllm.table import DrawnStep, Table

REJECTED = -1  # vLLM's placeholder


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
        return output_of(verified.tokens, DrawnStep(step.tokens[places], step.logprobs[places], others), theirs)


def output_of(tokens: Tensor, step: DrawnStep, theirs: Any) -> Any:
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
    """The rank of the drawn token is not reported: nobody of ours asks for it, and it would take another pass."""
    ranks = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    return touch("LogprobsTensors")(tokens.to(torch.int32), logprobs, ranks)


class Verified(NamedTuple):
    """`tokens` (B, S + 1): the accepted drafts of each request and the token behind them, then `REJECTED`. `places`
    (B, S + 1): the position that each was drawn at, any where there is none. `counts` (B,): how many are taken."""

    tokens: Tensor
    places: Tensor
    counts: Tensor


def verify(drawn: Tensor, drafts: Tensor, counts: Tensor, most: int) -> Verified:
    """Which of the drawn tokens hold.

    Args:
        drawn: (D + B,) the draw behind each position: request by request, that behind its last token, then those
            behind its drafts.
        drafts: (D,) request by request.
        counts: (B,) drafts of each request, together D.
        most: S, the most drafts of any request.
    """
    counts = counts.to(torch.int64)
    columns = torch.arange(most + 1, device=drawn.device)
    ends = counts.cumsum(0)
    own = torch.arange(len(counts), device=drawn.device)
    places = ((ends - counts + own)[:, None] + columns).clamp_(max=len(drawn) - 1)
    tokens = drawn[places]
    if most == 0:
        return Verified(tokens, places, torch.ones_like(counts))
    guessed = drafts[((ends - counts)[:, None] + columns[:-1]).clamp_(max=max(len(drafts) - 1, 0))]
    right = (tokens[:, :-1] == guessed) & (columns[:-1] < counts[:, None])
    taken = right.to(torch.int64).cumprod(-1).sum(-1) + 1
    return Verified(tokens.masked_fill(columns >= taken[:, None], REJECTED), places, taken)
