"""The rules by which streams become one score per token, as frozen data.

For one token position `L_k = log p_k` is the distribution of stream k, `w_k` its weight, and z the composed score, of
which the composed distribution is the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from motet.composers.confidence import Confidence, Judge
from motet.composers.schedule import Schedule


@dataclass(frozen=True, slots=True)
class LinearRule:
    """`z = Σ_k w_k L_k`: the streams' weights, temperatures and gates."""


@dataclass(frozen=True, slots=True)
class ReluRule:
    """`z = L_0 − α·relu(L_1 − L_0)` (Who's Harry Potter, Eldan and Russinovich 2023): stream 1 is the reinforced."""

    alpha: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class MixtureRule:
    """`z = log Σ_k w_k p_k` with the streams' weights ≥ 0, not all of them 0."""


@dataclass(frozen=True, slots=True)
class DiscriminatorRule:
    """`z = L_0 + ω·log σ(s)` (GeDi, Krause et al. 2020), streams 1 and 2 conditioned on the wanted and unwanted class.

    `s[v]` is the mean over the t tokens so far and v of `log p_1 − log p_2`. The tokens so far are those of the prompt
    that both classes read (see `judged_tokens`) and all that followed. Kept are the tokens of the highest σ(s) until
    softmax(z) of them reaches `mass`, and all with `σ(s) ≥ posterior`. `mass` 1 keeps all.
    """

    omega: float = 30.0
    mass: float = 0.2
    posterior: float = 0.8
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class DynamicRule:
    """`z = L_0 + Σ_i w_i α_i (L_2i−1 − L_2i)` with each α_i in [0, `alpha_max`] per token such that
    `KL(p_αi‖p_0) = KL(p_2i−1‖p_2i)`, `p_αi` being the base shifted by pair i alone (On Giant's Shoulders: Dynamic
    Logits Fusion, Fan et al. 2024); `symmetric`: the least squares of both directions. The streams after the base are
    pairs of expert and anti-expert, of weights w_i and −w_i."""

    alpha_max: float = 2.0
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """`z = L_0 + α ((w_0 − 1) L_0 + Σ_{k≥1} w_k L_k)` with the largest α ≤ `alpha_max` per token such that
    `KL(p_α‖p_0) ≤ epsilon`."""

    epsilon: float
    alpha_max: float = 1.0


@dataclass(frozen=True, slots=True)
class RoutedRule:
    """A head's share d per token: stream 1 where `d > threshold`, else stream 0 (Co-LLM, Shen et al. 2024; R2R, Fu et
    al. 2025); `threshold` None mixes: `z = log((1 − d) p_0 + d p_1)`. The head, a gate or a router, is that of stream
    0's model; d is its reading times `scale`, at most 1."""

    threshold: float | None = 0.5
    scale: float = 1.0
    schedule: Schedule | None = None

    def share(self, reading: float) -> float:
        """d of what the head says."""
        return min(1.0, self.scale * reading)

    def writer(self, reading: float) -> int | None:
        """The stream that writes the token alone; None where both do."""
        return None if self.threshold is None else int(self.share(reading) > self.threshold)


@dataclass(frozen=True, slots=True)
class AdaptiveRule:
    """A weighted sum in which a head of stream 0's model says one number t per token. `temperature`:
    `z = (Σ_k w_k L_k) / t`; `strength`: `z = L_0 + t ((w_0 − 1) L_0 + Σ_{k≥1} w_k L_k)`. A schedule's scale s makes
    `t^s` of a temperature; that of a strength is in the weights."""

    of: Literal["temperature", "strength"]
    scale: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class AdaptersRule:
    """`z = w_0 L_0 + Σ_{c≥1} w_c s_c L_c`: a weighted sum in which a head of stream 0's model gives every other stream
    its share s_c of the prompt, Σ_c s_c = 1 (ELREA, Li et al. 2025). The shares are those of the position that the
    first token of the answer is drawn from, and hold for the answer; within a scored prompt every position has its
    own."""


@dataclass(frozen=True, slots=True)
class DivergenceRule:
    """`z = L_0`, but the `count` tokens of which `L_1 − L_2` is lowest and below 0 are impossible, with those that tie
    with the last of them (Divergence Decoding's rank form, Merchant and Levy 2026)."""

    count: int
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class CascadeRule:
    """Stream 1 where it is confident, else stream 0: `z = log((1 − d) p_0 + d p_1)`.

    d is `share` where the largest probability of p_1 (`max_prob`), or its lead over the second largest (`margin`), is
    at least `threshold`, or where the entropy of p_1 in nats (`entropy`) is at most that; elsewhere d is 0.
    """

    measure: Confidence
    threshold: float
    share: float = 1.0
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class EscalationRule:
    """No rule of a token: stream 1 writes an answer by itself, and where `judge` does not find it sure, stream 0 writes
    another by itself. Whoever asks an engine asks it for one side at a time (`Plan.sides`)."""

    judge: Judge


@dataclass(frozen=True, slots=True)
class SparseRule:
    """As `MixtureRule` where the streams disagree, else stream 0 alone (SAFE, Yun et al. 2025).

    They agree where the most likely token v of p_0 is the most likely of all streams of weight > 0, or where
    `Σ_k w_k p_k[v] > agreement · Σ_k w_k`. What ties with the most likely is the most likely, too; v is the first.
    """

    agreement: float = 0.5


# what a schedule scales is a parameter of these, not a weight
Scalable = ReluRule | DiscriminatorRule | RoutedRule | AdaptiveRule | DivergenceRule | CascadeRule
Rule = LinearRule | AdaptersRule | MixtureRule | SparseRule | DynamicRule | BudgetRule | EscalationRule | Scalable
LINEAR = LinearRule()
MIN_STREAMS: dict[type, int] = {
    **dict.fromkeys((ReluRule, AdaptersRule, RoutedRule, CascadeRule, EscalationRule), 2),
    **dict.fromkeys((DiscriminatorRule, DynamicRule, DivergenceRule), 3),
}


def judged_tokens(wanted: Sequence[int], unwanted: Sequence[int]) -> int:
    """How many tokens at the end of two classes' contexts `DiscriminatorRule` judges: those that both classes read, the
    text, without what comes before them, the class. The very first token of a context is never judged: nothing
    predicts it."""
    most = min(len(wanted), len(unwanted)) - 1
    return next((n for n in range(most) if wanted[-1 - n] != unwanted[-1 - n]), most)
