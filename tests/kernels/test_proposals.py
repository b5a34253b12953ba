"""Taking another distribution's draws leaves the row's own distribution as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from motet.kernels import proposals
from motet.kernels.proposals import Proposal, settled, warped
from motet.kernels.reference import inverse_cdf
from motet.kernels.sampling import SampleRows

DRAWS = 8_000
FALSE_ALARM = 1e-6  # of each chi-square test; seeds are fixed
VOCAB = 12


def rows_of(count: int, **changed: Any) -> SampleRows:
    plain: dict[str, Any] = {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | changed
    return SampleRows(**{name: [value] * count for name, value in plain.items()})


def tokens_of(
    scores: Tensor, draft: Tensor, params: dict[str, Any], generator: torch.Generator
) -> tuple[Counter[int], int]:
    """What comes of DRAWS guesses from the draft's scores (V,), and how many of them were taken."""
    one, many = rows_of(1, **params), rows_of(DRAWS, **params)
    probs = warped(draft[None], one)[0]
    uniforms = 1.0 - torch.rand(DRAWS, 3, generator=generator)
    drawn = inverse_cdf(probs.expand(DRAWS, -1), uniforms[:, 0])
    guesses = [int(token) for token in drawn]
    made = [
        Proposal(row, guess, probs, float(coin), float(uniform))
        for row, (guess, (_, coin, uniform)) in enumerate(zip(guesses, uniforms, strict=True))
    ]
    tokens = settled(scores.expand(DRAWS, -1), many, made)
    return Counter(tokens), sum(token == guess for token, guess in zip(tokens, guesses, strict=True))


def p_value(tokens: Counter[int], expected: Tensor) -> float:
    assert all(expected[token] > 0 for token in tokens)
    common = [v for v in range(VOCAB) if float(expected[v]) * DRAWS >= 5]
    observed = [tokens[v] for v in common]
    wanted = [float(expected[v]) * DRAWS for v in common]
    if (rest := DRAWS - sum(observed)) or sum(wanted) < DRAWS - 1e-3:
        observed.append(rest)
        wanted.append(DRAWS - sum(wanted))
    scale = sum(observed) / sum(wanted)
    chi_square: Any = stats.chisquare  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return float(chi_square(observed, [scale * value for value in wanted])[1])


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 5, "min_p": 0.05}, {"temperature": 1.7}])
@pytest.mark.parametrize(
    ("share", "noise", "least", "most"), [(1.0, 0.2, 0.85, 1.0), (0.0, 1.0, 0.3, 0.8), (-2.0, 0.0, 0.0, 0.3)]
)
def test_frequencies_are_the_rows_own(
    params: dict[str, Any], share: float, noise: float, least: float, most: float
) -> None:
    """Chi-square at high, middling and low acceptance."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    draft = share * scores + noise * torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    tokens, taken = tokens_of(scores, draft, params, generator)
    own, theirs = (warped(s[None], rows_of(1, **params))[0] for s in (scores, draft))
    assert p_value(tokens, own) > FALSE_ALARM
    assert taken / DRAWS == pytest.approx(float(torch.minimum(own, theirs).sum()), abs=0.02), "1 − total variation"
    if not params:
        assert least <= taken / DRAWS <= most


def test_taking_every_guess_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(probs: Tensor, proposal: Proposal) -> int:
        return proposal.token

    monkeypatch.setattr(proposals, "_settled", always)
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    draft = scores + 0.2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    tokens, _ = tokens_of(scores, draft, {}, generator)
    assert p_value(tokens, warped(scores[None], rows_of(1))[0]) < FALSE_ALARM


def test_what_both_find_alike_is_always_taken() -> None:
    scores = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    tokens, taken = tokens_of(scores, scores, {"top_p": 0.9}, torch.Generator().manual_seed(2))
    assert taken == DRAWS
    assert sum(tokens.values()) == DRAWS
