"""Drawing tokens on the CPU without sorting the vocabulary.

A row is drawn by one of three ways, chosen by its own parameters alone, so that what else is in the batch changes
nothing: greedy rows by arg-max; unfiltered rows by the inverse of the cumulative distribution over the whole
vocabulary; filtered rows among their most likely `CANDIDATES` tokens, which is exact whenever top-k or top-p ends
there (a row whose mass does not is sorted in full). The oracle is `reference.warp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.kernels.reference import inverse_cdf

CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Sampling parameters of R rows (struct of lists: they are read on the host, once per change of the batch).

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    """

    temperature: Sequence[float]
    top_k: Sequence[int]
    top_p: Sequence[float]
    min_p: Sequence[float]

    def is_filtered(self, row: int) -> bool:
        return self.top_k[row] > 0 or self.top_p[row] < 1.0 or self.min_p[row] > 0.0


def sample(scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
    """Draws one token per row: (R,) int64.

    Args:
        scores: (R, V) unnormalised log scores; −inf tokens are never drawn.
        params: how each row is warped.
        uniform: (R) one draw in (0, 1] per row; unused by greedy rows.
    """
    rows = range(scores.shape[0])
    if all(t == 0.0 for t in params.temperature):
        return scores.argmax(-1)
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    greedy = [r for r in rows if params.temperature[r] == 0.0]
    open_rows = [r for r in rows if params.temperature[r] > 0.0 and not params.is_filtered(r)]
    filtered = [r for r in rows if params.temperature[r] > 0.0 and params.is_filtered(r)]
    if greedy:
        tokens[greedy] = scores[greedy].argmax(-1)
    if open_rows:
        scaled = scores[open_rows] / _column(params.temperature, open_rows, scores)
        tokens[open_rows] = inverse_cdf(scaled.softmax(-1), _vector(uniform, open_rows, scores))
    for row in filtered:
        tokens[row] = _sample_filtered(scores[row] / params.temperature[row], params, row, uniform[row])
    return tokens


def _sample_filtered(scores: Tensor, params: SampleRows, row: int, uniform: float) -> Tensor:
    """One row (V,): top-k, then top-p on what is left, then min-p, then the draw, in descending order."""
    top_k, top_p, min_p = params.top_k[row], params.top_p[row], params.min_p[row]
    vocab = scores.shape[0]
    count = min(vocab, top_k or CANDIDATES)
    values, ids = scores.topk(count)
    total = values.logsumexp(-1) if top_k else scores.logsumexp(-1)
    probs = (values - total).exp_()
    cumulative = probs.cumsum(-1)
    if not top_k and count < vocab and not _reaches(probs, float(cumulative[-1]), top_p, min_p):
        values, ids = scores.sort(dim=-1, descending=True, stable=True)
        probs = (values - total).exp_()
        cumulative = probs.cumsum(-1)
    drop = probs < min_p * probs[0]
    if top_p < 1.0:
        drop |= (cumulative - probs) >= top_p
    drop[0] = False
    kept = probs.masked_fill_(drop, 0.0)
    return ids[inverse_cdf(kept[None], torch.tensor([uniform], dtype=kept.dtype, device=kept.device))[0]]


def _reaches(probs: Tensor, mass: float, top_p: float, min_p: float) -> bool:
    """Whether the kept set ends inside the candidates, so that the tail need not be looked at."""
    return (top_p < 1.0 and mass >= top_p) or (min_p > 0.0 and float(probs[-1]) < min_p * float(probs[0]))


def _column(values: Sequence[float], rows: Sequence[int], like: Tensor) -> Tensor:
    return _vector(values, rows, like)[:, None]


def _vector(values: Sequence[float], rows: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([values[r] for r in rows], dtype=like.dtype, device=like.device)
