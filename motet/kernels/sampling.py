"""Drawing tokens on the CPU without sorting the vocabulary.

A row is drawn by one of three ways, chosen by its own parameters alone, so that what else is in the batch changes
nothing: greedy rows by arg-max; unfiltered rows by the inverse of the cumulative distribution over the whole
vocabulary; filtered rows among their most likely tokens, which is exact whenever top-k, top-p or min-p ends there
(a row whose mass does not is sorted in full). The oracle is `reference.warp`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.kernels.layout import blocks
from motet.kernels.reference import inverse_cdf

FEW = 64  # candidates of a small top-k, and the first look where only the mass tells how many are needed
CANDIDATES = 1024  # the second look; a row that needs more is sorted
_OPEN, _GREEDY = (0, False), (-1, False)
TILE = 1024  # tokens whose mass is summed before the draw looks at any of them


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

    def select(self, rows: Sequence[int]) -> SampleRows:
        """The parameters of some rows."""
        columns = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = ([column[r] for r in rows] for column in columns)
        return SampleRows(temperature, [int(k) for k in top_k], top_p, min_p)

    def way(self, row: int, vocab: int) -> tuple[int, bool]:
        """(how many of the most likely tokens a row that is not greedy looks at first, whether top-k ends there): by
        its own parameters alone. (0, False) looks at all."""
        if not self.is_filtered(row):
            return _OPEN
        top_k = self.top_k[row]
        count = FEW if top_k <= FEW else max(top_k, CANDIDATES)
        return min(count, vocab), top_k > 0


def sample(scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
    """Draws one token per row: (R,) int64.

    Args:
        scores: (R, V) unnormalised log scores; −inf tokens are never drawn.
        params: how each row is warped.
        uniform: (R) one draw in (0, 1] per row; unused by greedy rows.
    """
    if all(t == 0.0 for t in params.temperature):
        return scores.argmax(-1)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for r, temperature in enumerate(params.temperature):
        groups[_GREEDY if temperature == 0.0 else params.way(r, scores.shape[-1])].append(r)
    parts = {way: _sample_group(scores, params, rows, uniform, way) for way, rows in groups.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    for way, rows in groups.items():
        tokens[rows] = parts[way]
    return tokens


def _sample_group(
    scores: Tensor, params: SampleRows, rows: Sequence[int], uniform: Sequence[float], way: tuple[int, bool]
) -> Tensor:
    chosen = scores if len(rows) == scores.shape[0] else scores[rows]
    if way == _GREEDY:
        return chosen.argmax(-1)
    if way == _OPEN:
        return _sample_open(chosen, params, rows, uniform)
    return _sample_filtered(chosen, params, rows, uniform, *way)


def _sample_open(scores: Tensor, params: SampleRows, rows: Sequence[int], uniform: Sequence[float]) -> Tensor:
    """As many rows at once as the cache holds: their probabilities stay there between the passes."""
    table = torch.tensor([[params.temperature[r], uniform[r]] for r in rows], dtype=scores.dtype, device=scores.device)
    drawn = [
        tiled_inverse_cdf((scores[block] / table[block, :1]).softmax(-1), table[block, 1:])
        for block in blocks(len(rows), scores.shape[-1])
    ]
    return torch.cat(drawn)


def tiled_inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """`reference.inverse_cdf` of rows (n, V) with a draw each (n, 1): the tile by its mass first, then the token in
    it."""
    vocab = probs.shape[-1]
    whole = vocab // TILE * TILE
    tiles = probs[:, :whole].reshape(probs.shape[0], vocab // TILE, TILE).sum(-1)
    masses = torch.cat([tiles, probs[:, whole:].sum(-1, keepdim=True)], -1).cumsum_(-1)
    target = masses[:, -1:] * uniform
    # where no token is possible every sum is no number: then the last token, as good as any
    tile = torch.searchsorted(masses, target).clamp_max_((vocab - 1) // TILE)
    places = tile * TILE + torch.arange(min(TILE, vocab), device=probs.device)
    inside = probs.gather(-1, places.clamp_max(vocab - 1)).masked_fill_(places >= vocab, 0.0).cumsum_(-1)
    before = torch.nn.functional.pad(masses, (1, 0)).gather(-1, tile)
    # sums of a tile round differently by one pass and by the other: never beyond what is in the tile
    place = torch.searchsorted(inside, torch.minimum(target - before, inside[:, -1:]))
    return (tile * TILE + place).clamp_max_(vocab - 1)[:, 0]


def _sample_filtered(
    scores: Tensor, params: SampleRows, rows: Sequence[int], uniform: Sequence[float], count: int, bounded: bool
) -> Tensor:
    """Rows (n, V) with `count` candidates: top-k, then top-p on what is left, then min-p, then the draw."""
    columns = [[params.temperature[r], params.top_k[r], params.top_p[r], params.min_p[r], uniform[r]] for r in rows]
    table = torch.tensor(columns, dtype=scores.dtype, device=scores.device)
    temperature, top_k, top_p, min_p, draw = (table[:, i : i + 1] for i in range(5))
    values, ids = scores.topk(count)
    scaled = values / temperature
    if bounded:  # top-k ends within the candidates: their mass is all that counts
        scaled.masked_fill_(torch.arange(count, device=scores.device) >= top_k, -math.inf)
        return ids.gather(-1, _draw(scaled.softmax(-1), top_p, min_p, draw))[:, 0]
    probs = (scaled - _scaled_logsumexp(scores, temperature, values[:, :1])).exp_()
    drawn = ids.gather(-1, _draw(probs, top_p, min_p, draw))[:, 0]
    short = ~_reaches(probs, top_p, min_p)[:, 0]
    if count < scores.shape[-1] and bool(short.any()):
        again = [row for row, is_short in zip(rows, short, strict=True) if is_short]
        more = min(CANDIDATES, scores.shape[-1])
        if count < more:
            drawn[short] = _sample_filtered(scores[short], params, again, uniform, more, bounded)
        else:
            values, ids = scores[short].sort(dim=-1, descending=True, stable=True)
            probs = (values / temperature[short]).softmax(-1)
            drawn[short] = ids.gather(-1, _draw(probs, top_p[short], min_p[short], draw[short]))[:, 0]
    return drawn


def _scaled_logsumexp(scores: Tensor, temperature: Tensor, best: Tensor) -> Tensor:
    """logsumexp(scores / temperature) (n, 1), row by row: the log-prob of the best token says it in one pass."""
    parts = [(row / t).log_softmax(-1).amax() for row, t in zip(scores, temperature, strict=True)]
    return best / temperature - torch.stack(parts)[:, None]


def _draw(probs: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """Places (n, 1) drawn from probabilities in descending order."""
    cumulative = probs.cumsum(-1)
    drop = ((cumulative - probs >= top_p) & (top_p < 1.0)) | (probs < min_p * probs[:, :1])
    drop[:, 0] = False
    return inverse_cdf(probs.masked_fill_(drop, 0.0), uniform[:, 0])[:, None]


def _reaches(probs: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Whether the kept set ends inside the candidates (n, 1), so that the tail need not be looked at."""
    by_mass = (top_p < 1.0) & (probs.sum(-1, keepdim=True) >= top_p)
    return by_mass | ((min_p > 0.0) & (probs[:, -1:] < min_p * probs[:, :1]))
