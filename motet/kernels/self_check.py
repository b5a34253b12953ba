"""Proof at start that the chosen kernels compute here what the oracle computes, before any request relies on them."""

from __future__ import annotations

import torch

from motet.kernels.decode import DecodeRows, Kernels, decode
from motet.kernels.layout import ComposeRows, MaskRows, SetRows, TermRows
from motet.kernels.logits import Logits
from motet.kernels.reference import composed
from motet.kernels.sampling import SampleRows

ROWS, VOCAB = 2, 3001
TOLERANCE = 1e-3  # nats, float32


def differs(kernels: Kernels, device: torch.device) -> str | None:
    """None, or in which way a masked weighted sum, its greedy tokens or a filtered draw are wrong.

    Two rows over three streams: row 0 is a plain sum, row 1 has a plausibility mask. An exception is a difference too.
    """
    generator = torch.Generator().manual_seed(0)
    logits = Logits([(3 * torch.randn(ROWS, VOCAB, generator=generator)).to(device) for _ in range(3)])
    plan = _plan(device)
    try:
        expected = composed(logits.logprobs(), plan).logprobs
        found = kernels.compose(logits, plan, None, None).logprobs
        if not torch.equal(found == -torch.inf, expected == -torch.inf):
            return "its mask keeps other tokens"
        worst = float((found - expected).nan_to_num(0.0).abs().max())
        if found.isnan().any() or worst > TOLERANCE:
            return f"its log-probs differ by {worst:.3g}"
        return _wrong_tokens(kernels, logits, plan, expected)
    except Exception as error:
        return f"it failed: {type(error).__name__}: {error}"


def _wrong_tokens(kernels: Kernels, logits: Logits, plan: ComposeRows, expected: torch.Tensor) -> str | None:
    greedy = SampleRows([0.0] * ROWS, [0] * ROWS, [1.0] * ROWS, [0.0] * ROWS)
    token = decode(kernels, logits, DecodeRows(plan, [-1] * ROWS, greedy, [1.0] * ROWS)).token
    if not torch.equal(token.cpu(), expected.argmax(-1).cpu()):
        return "its greedy tokens are others"
    filtered = SampleRows([1.0] * ROWS, [2] * ROWS, [1.0] * ROWS, [0.0] * ROWS)
    token = decode(kernels, logits, DecodeRows(plan, [-1] * ROWS, filtered, [0.3] * ROWS)).token
    best = expected.topk(2).indices
    return None if bool((best == token[:, None]).any(-1).all()) else "it draws tokens that top-k leaves out"


def _plan(device: torch.device) -> ComposeRows:
    terms = tuple(
        TermRows(slice(0, ROWS), slice(k * ROWS, (k + 1) * ROWS), torch.full((ROWS,), weight, device=device))
        for k, weight in enumerate((1.0, 0.7, -0.7))
    )
    mask = MaskRows(slice(1, ROWS), SetRows("ratio", 0.1, slice(1, ROWS)))
    return ComposeRows(ROWS, slice(0, ROWS), terms, (mask,))
