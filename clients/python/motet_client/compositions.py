"""Compositions, a class for each strategy; written by `python -m docs.generate` from the server's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from motet_client.spec import Spec


@dataclass(frozen=True, kw_only=True)
class BaseObject(Spec):
    """The base; its model may be left to the request's `model`."""

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Sequence[RoleMessage] | None = None
    """A conversation, rendered with `template`. (1 to 4096 of them)"""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: int | None = None
    """Keep only so many tokens of the end. (≥ 1, ≤ 2147483647)"""
    temperature: float = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it. (≥
    0.01, ≤ 100)"""
    model: str | None = None
    """A model of `GET /v1/models`; left out, the request's."""


@dataclass(frozen=True, kw_only=True)
class Cap(Spec):
    """A trust region around the base."""

    epsilon: float = 0.5
    """Most that a token's distribution may move away from the base, as KL in nats. (> 0, ≤ 100)"""
    alpha_max: float = 1.0
    """The largest strength α that may be chosen. (> 0, ≤ 10)"""


@dataclass(frozen=True, kw_only=True)
class Context(Spec):
    """A reading that must differ from the request's own prompt: a second context of the base model."""

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Sequence[RoleMessage] | None = None
    """A conversation, rendered with `template`. (1 to 4096 of them)"""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: int | None = None
    """Keep only so many tokens of the end. (≥ 1, ≤ 2147483647)"""
    temperature: float = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it. (≥
    0.01, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class EosRamp(Spec):
    """The end of the answer becomes more likely: from 0 up to `weight` nats over the first `tokens` tokens."""

    tokens: int
    """Length of the ramp. (≥ 1, ≤ 1000000)"""
    weight: float
    """What the end has gained at the end of the ramp, in nats. (≥ -100, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class ExpertPair(Spec):
    """What `expert` learned over `antiexpert`; `weight` multiplies the strength that was solved for."""

    expert: RoleObject | str
    """The model that shows the behaviour."""
    antiexpert: RoleObject | str
    """The same model without it."""
    weight: float = 1.0
    """Multiplies the strength that was solved for this pair. (≥ -100, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class MemberObject(Spec):
    """A role with its weight in the product."""

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Sequence[RoleMessage] | None = None
    """A conversation, rendered with `template`. (1 to 4096 of them)"""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: int | None = None
    """Keep only so many tokens of the end. (≥ 1, ≤ 2147483647)"""
    temperature: float = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it. (≥
    0.01, ≤ 100)"""
    model: str
    """A model of `GET /v1/models`."""
    weight: float = 1.0
    """Factor of this model's log-probs. (≥ -100, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class MixedObject(Spec):
    """A role with its share of the mixture; shares need not sum to 1."""

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Sequence[RoleMessage] | None = None
    """A conversation, rendered with `template`. (1 to 4096 of them)"""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: int | None = None
    """Keep only so many tokens of the end. (≥ 1, ≤ 2147483647)"""
    temperature: float = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it. (≥
    0.01, ≤ 100)"""
    model: str
    """A model of `GET /v1/models`."""
    weight: float = 1.0
    """Share of this model's probabilities; shares need not sum to 1. (> 0, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class RoleMessage(Spec):
    """One chat message of a role's own prompt."""

    role: str
    """Who speaks, as the chat template names it."""
    content: str
    """What is said."""


@dataclass(frozen=True, kw_only=True)
class RoleObject(Spec):
    """A registered model and what it reads."""

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Sequence[RoleMessage] | None = None
    """A conversation, rendered with `template`. (1 to 4096 of them)"""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: int | None = None
    """Keep only so many tokens of the end. (≥ 1, ≤ 2147483647)"""
    temperature: float = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it. (≥
    0.01, ≤ 100)"""
    model: str
    """A model of `GET /v1/models`."""


@dataclass(frozen=True, kw_only=True)
class TimedPoint(Spec):
    """What holds from one token of the answer on."""

    token: int
    """How many tokens of the answer come before; the first point's is 0. (≥ 0, ≤ 1000000)"""
    scale: float
    """Multiplies the strength of the strategy: 0 is the base, 1 what the strategy says. (≥ 0, ≤ 100)"""
    masks: bool | None = None
    """Whether the strategy's masks hold; left out, where the scale is not 0."""


@dataclass(frozen=True, kw_only=True)
class Timing(Spec):
    """When a strategy counts: the base's score moves by `scale` times what the strategy adds to it.

    Counted are the tokens of the answer, scored ones too, not those of the prompt. Of strategies that are no sums the
    strength is scaled: `alpha` of `generic`, `omega` of `discriminator`, the weights of the members beside the base of
    `mixture` and `sparse`, what each pair adds in `dynamic`, what is added at most in `budget`, what the adapters
    add in `adapters`, the small model's share of its tokens in `cascade`, at most 1.
    """

    warmup: int | None = None
    """The base alone writes so many tokens first (ThinkLogit's warm-up). Excludes `points`. (≥ 1, ≤ 1000000)"""
    points: Sequence[TimedPoint] | None = None
    """What holds from which token on, in order; the first point is at token 0. (1 to 64 of them)"""
    linear: bool = False
    """Between two points the scale moves in a straight line, instead of all at once."""
    phase: Literal["thought", "answer"] | None = None
    """The strategy counts in the thought alone, or in the answer behind it alone, and tokens are counted from there."""


@dataclass(frozen=True, kw_only=True)
class Trait(Spec):
    """A behaviour: what `tuned` learned over `reference`, times `beta`."""

    tuned: RoleObject | str
    """The fine-tuned model."""
    reference: RoleObject | str
    """The model that it was tuned from."""
    beta: float = 1.0
    """Strength; above 1 amplifies. (≥ -100, ≤ 100)"""
    top_p: float | None = None
    """The shift counts only inside the tuned model's top-p set; null: everywhere. (> 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class TraceOptions(Spec):
    """How much of each token a trace tells."""

    top: int = 0
    """Alternatives per token, before and after composition. (≥ 0, ≤ 20)"""
    members: bool = False
    """Also each member's rank of the token, its push in nats, and its log-prob of every alternative."""


@dataclass(frozen=True, kw_only=True)
class Strategy(Spec):
    """What every strategy can say."""

    base: BaseObject | str | None = None
    """The model that is steered; left out, the request's `model`."""
    schedule: Timing | None = None
    """When the strategy counts; left out, always."""


@dataclass(frozen=True, kw_only=True)
class ProxyTuning(Strategy):
    """`z = L_base + α (L_expert − L_antiexpert)`

    Tuning Language Models by Proxy (Liu et al. 2024, arXiv:2401.08565). Roles: `expert` is the tuned small model,
    `antiexpert` the same model untuned.
    """

    strategy = "proxy_tuning"
    expert: RoleObject | str
    """The model that shows the behaviour."""
    antiexpert: RoleObject | str
    """The same model without it."""
    alpha: float = 1.0
    """Strength; negative steers away. (≥ -100, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class Eft(Strategy):
    """`z = L_base + Σ_i β_i (L_tuned_i − L_reference_i) · [v ∈ top-p of tuned_i]`

    An Emulator for Fine-Tuning Large Language Models using Small Language Models (Mitchell et al. 2023,
    arXiv:2310.12962). A base larger than the traits is up-scaling, a smaller one down-scaling, β > 1 amplifies.
    One trait is written flat (`tuned`, `reference`, `beta` = 1, `top_p`), several as `traits`.
    """

    strategy = "eft"
    tuned: RoleObject | str | None = None
    """The fine-tuned model. Excludes `traits`."""
    reference: RoleObject | str | None = None
    """The model that it was tuned from."""
    beta: float | None = None
    """Strength, 1 unless given; above 1 amplifies. (≥ -100, ≤ 100)"""
    top_p: float | None = None
    """The shift counts only inside the tuned model's top-p set; null: everywhere. (> 0, ≤ 1)"""
    traits: Sequence[Trait] | None = None
    """Several behaviours, each with a strength of its own. (1 to 8 of them)"""


@dataclass(frozen=True, kw_only=True)
class Contrastive(Strategy):
    """`z = (1 + β) L_base − β L_amateur` inside `{v: L_base[v] ≥ max L_base + ln α}`, else −inf

    The `reasoning` form (O'Brien and Lewis 2023, arXiv:2309.09117), β = 0.5 unless given. The `original` form
    (Contrastive Decoding, Li et al. 2022, arXiv:2210.15097) is `L_base − L_amateur` in the same mask. Roles: the
    base is the expert, `amateur` the weak model, which may be blind to all but `last_tokens` of the prompt;
    `amateur_temperature` divides its logits.
    """

    strategy = "contrastive"
    amateur: RoleObject | str
    """The weak model."""
    alpha: float = 0.1
    """Tokens less likely than this share of the base's most likely one are impossible. (> 0, ≤ 1)"""
    beta: float | None = None
    """Strength of the contrast, 0.5 unless given; only in form `reasoning`. (≥ -100, ≤ 100)"""
    form: Literal["reasoning", "original"] = "reasoning"
    """`reasoning` is (1 + β) L_base − β L_amateur, `original` is L_base − L_amateur."""
    amateur_temperature: float = 1.0
    """Divides the amateur's logits. (≥ 0.01, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class LayerContrast(Strategy):
    """`z = L_base − α L_early` inside `{v: L_base[v] ≥ max L_base + ln m}`, else −inf

    DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models (Chuang et al. 2024,
    arXiv:2309.03883), α = 1 and m = 0.1. L_early is what the base's own final norm and output head make of its hidden
    state behind an early layer, in the same forward. Every token has its layer: of the candidates the one whose
    distribution has the greatest Jensen–Shannon divergence from the base's, or with `select: "entropy"` the greatest
    entropy. Form `extrapolation` is `(1 + α) L_base − α L_early`. The trace reports the layer as `layer`.
    """

    strategy = "layer_contrast"
    bucket: Literal["low", "high"] | None = None
    """Every second layer of the lower half is a candidate (`low`, also if left out), or of the upper half (`high`)."""
    layers: Sequence[int] | None = None
    """The candidates themselves; 0 is the embeddings, 1 what is behind the first layer. Excludes `bucket`. (1 to 32 of
    them)"""
    select: Literal["divergence", "entropy"] = "divergence"
    """What chooses among the candidates, for every token."""
    alpha: float = 1.0
    """Strength of the contrast: 0 changes nothing but what `mask` leaves out. (≥ -100, ≤ 100)"""
    mask: float | None = 0.1
    """Tokens less likely than this share m of the base's most likely one are impossible; null: no mask. (> 0, ≤ 1)"""
    form: Literal["difference", "extrapolation"] = "difference"
    """`difference` is L_base − α L_early, `extrapolation` is (1 + α) L_base − α L_early."""


@dataclass(frozen=True, kw_only=True)
class Novelty(Strategy):
    """`z = L_base − λ L_untuned` inside `{v: L_base[v] ≥ max L_base + ln α}`, else −inf

    What's New in My Data? Novelty Exploration via Contrastive Generation (Isonuma and Titov 2024,
    arXiv:2410.14765). Roles: the base is the fine-tuned model, `untuned` its starting point; in the iterative form that
    model after it has learned what was sampled so far. λ is written `lambda`; α is contrastive decoding's 0.1 unless
    given, None is no mask.
    """

    strategy = "novelty"
    untuned: RoleObject | str
    """The model before it was tuned."""
    lambda_: float = 1.0
    """How much of the untuned model is taken away. (≥ -100, ≤ 100)"""
    alpha: float | None = 0.1
    """Tokens less likely than this share of the base's most likely one are impossible; null: none are. (> 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Unlearn(Strategy):
    """`z = L_base − w L_assistant` inside `{v: L_base[v] ≥ min(L_(m), max L_base + ln f)}`, else −inf

    `L_(m)` is the m-th largest of the base's log-probs, `m = max(1, ⌊f·V⌋)`. Reversing the Forget-Retain Objectives
    (Ji et al. 2024, arXiv:2406.08607). Roles: the base is the target, `assistant` remembers the forget set and is
    indifferent elsewhere. `filter` is f, None is no mask.
    """

    strategy = "unlearn"
    assistant: RoleObject | str
    """The model that knows what shall be forgotten."""
    weight: float = 0.8
    """How much of the assistant is taken away. (≥ -100, ≤ 100)"""
    filter: float | None = 0.01
    """Share f of the mask: what the base finds too unlikely stays impossible; null: no mask. (> 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Divergence(Strategy):
    """`z = L_base + α (L_without − L_with)`

    Divergence Decoding: Inference-Time Unlearning via Auxiliary Models (Merchant and Levy 2026, arXiv:2605.31293).
    Roles: the base knows what shall be forgotten; `with` is a small model that was trained on it too, `without` the
    same model trained on all but that. The `rank` form leaves the base's distribution as it is, without the `count`
    tokens of which `L_without − L_with` is lowest (and below 0): it cannot be stacked.
    """

    strategy = "divergence"
    without: RoleObject | str
    """A small model that never saw what shall be forgotten."""
    with_: RoleObject | str
    """The same model trained on it as well."""
    form: Literal["linear", "rank"] = "linear"
    """`linear` adds the difference, `rank` makes the tokens that it disfavours most impossible."""
    alpha: float | None = None
    """Strength, 1.5 unless given; only in form `linear`. (≥ -100, ≤ 100)"""
    count: int | None = None
    """How many tokens are impossible, 20 unless given; only in form `rank`. (≥ 1, ≤ 1000)"""


@dataclass(frozen=True, kw_only=True)
class ContextAware(Strategy):
    """`z = (1 + α) L(· | context, query) − α L(· | query)`

    Trusting Your Evidence: Hallucinate Less with Context-aware Decoding (Shi et al. 2023, arXiv:2305.14739). One
    model, two contexts: the base reads the request's prompt, context included, and the same model reads `without`.
    α = 0.5 for summaries, 1 for conflicts with what the model knows; α < 0 trusts the model's prior.
    """

    strategy = "context_aware"
    without: Context
    """What the base reads in place of the prompt: the question without the context."""
    alpha: float = 0.5
    """How much the context counts beyond reading it. (≥ -100, ≤ 100)"""


@dataclass(frozen=True, kw_only=True)
class Hesitation(Strategy):
    """`z = (1 + α) L_pondered − α L_base` inside `{v: L_pondered[v] ≥ max L_pondered + ln m}`, else −inf

    SH2: Self-Highlighted Hesitation Helps You Decode More Truthfully (Kai et al. 2024, arXiv:2401.05930). One model,
    two contexts: the base reads the prompt, `pondered` the prompt and its key tokens once more. These are the `share`
    of its tokens, rounded down but one at least, that the base finds least likely, the first of equal ones first; they
    are read in the order of the prompt. The engine scores the prompt for it, once, before the answer begins. In a chat
    the last user message is scored, by itself, and the key tokens stand at its end, behind a line break and
    "Pondering: ". A text, or token ids, are scored as they are read, and the key tokens stand in front, between
    "Pondering: " and an empty line with "Context:", so that the answer still continues the text. Special tokens are
    never key tokens; of a prompt of one token there is none, and both contexts are the same.
    """

    strategy = "hesitation"
    alpha: float = 1.6
    """How much the key tokens count beyond reading them: 0 is the model after pondering, −1 the base. (≥ -100, ≤
    100)"""
    share: float = 0.04
    """Which share of the prompt's tokens are read once more; 0 is the base, inside of the mask. (≥ 0, ≤ 1)"""
    mask: float | None = 0.1
    """Tokens less likely than this share of the most likely one, after pondering, are impossible; null: none are. (> 0,
    ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Guidance(Strategy):
    """`z = γ L(· | prompt) + (1 − γ) L(· | unconditional)`

    Stay on topic with Classifier-Free Guidance (Sanchez et al. 2023, arXiv:2306.17806). `scale` is γ, 1 is off. The
    unconditional context is `unconditional`, or `negative_prompt` (in a chat: as one user message), or the last
    token of the prompt, as in Hugging Face's `generate`.
    """

    strategy = "guidance"
    scale: float = 1.5
    """Strength γ: 1 changes nothing. (≥ -100, ≤ 100)"""
    negative_prompt: str | None = None
    """What to lead away from; in a chat one user message. Excludes `unconditional`."""
    unconditional: Context | None = None
    """What the base reads in place of the prompt; left out, the prompt's last token alone."""


@dataclass(frozen=True, kw_only=True)
class Experts(Strategy):
    """`z = L_base + Σ_i α_i (L_expert_i − L_antiexpert_i)` inside the base's top-p set, else −inf

    DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts (Liu et al. 2021,
    arXiv:2105.03023). Either side is one role, a list or missing. Where the i-th of a side is missing, the base stands
    in its place, as in the authors' code: members that agree with the base change nothing, whichever side they are on.
    `alpha` is one number for all, or a list whose i-th entry weighs the i-th of both sides. `top_p` None and 1 mean no
    mask.
    """

    strategy = "experts"
    expert: RoleObject | str | Sequence[RoleObject | str] | None = None
    """Models to steer towards; the base stands in for one that is missing."""
    antiexpert: RoleObject | str | Sequence[RoleObject | str] | None = None
    """Models to steer away from; the base stands in for one that is missing."""
    alpha: float | Sequence[float] | None = None
    """Strength, one for all pairs or one each. (≥ -100, ≤ 100)"""
    top_p: float | None = 0.9
    """Only tokens of the base's top-p set are possible; null: all. (> 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Product(Strategy):
    """`z = Σ_k w_k L_k`

    Training Products of Experts by Minimizing Contrastive Divergence (Hinton 2002); with weights 1 / K the geometric
    mean of K models. `members` are all of the ensemble, the base among them: the first member whose model is the
    request's, or the first of all if the request leaves it open. A base with weight 0 only serves as the reference
    of traces.
    """

    strategy = "product"
    members: Sequence[MemberObject | str]
    """All models of the product, the base among them. (1 to 8 of them)"""


@dataclass(frozen=True, kw_only=True)
class RuleAdapter(Strategy):
    """`z = L_base + r`, with r the sum of a ramp on the end of sequence, `−repetition` on every token generated
    before, and offsets of single tokens

    Instruction Following without Instruction Tuning (Hewitt et al. 2024, arXiv:2409.14254). `token_offsets` maps a
    text that is exactly one token, or an id written `id:123`, to an offset in nats.
    """

    strategy = "rules"
    eos_ramp: EosRamp | None = None
    """Makes the end of the answer more likely, token by token."""
    repetition: float = 0.0
    """Taken off tokens that the answer holds already, in nats. (≥ -100, ≤ 100)"""
    token_offsets: Mapping[str, float] | None = None
    """Offset in nats by token: a text that is exactly one token, or `id:123`."""


@dataclass(frozen=True, kw_only=True)
class Mixture(Strategy):
    """`z = log Σ_k w_k p_k`

    The arithmetic mean of the members' distributions; of its calibration: Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474). The `product` is the geometric
    mean. `members` are all of the ensemble, the base among them: the first member whose model is the request's, or the
    first of all if the request leaves it open.
    """

    strategy = "mixture"
    members: Sequence[MixedObject | str]
    """All models of the mixture, the base among them. (1 to 8 of them)"""


@dataclass(frozen=True, kw_only=True)
class Sparse(Strategy):
    """`z = log Σ_k w_k p_k` where the members disagree, else `L_base`

    When to Ensemble: Identifying Token-Level Points for Stable and Fast LLM Ensembling (Yun et al. 2025,
    arXiv:2510.15346). Members agree on the base's most likely token where all find it the most likely, or give it
    more than `agreement` of their probability, `Σ_k w_k p_k / Σ_k w_k`. What the paper does about unlike tokenizers
    has no place here: members share one. `members` as in `mixture`. The trace's `alpha` is 1 where they were composed.
    """

    strategy = "sparse"
    members: Sequence[MixedObject | str]
    """All models of the mixture, the base among them. (1 to 8 of them)"""
    agreement: float = 0.5
    """Mean probability of a token above which members agree on it; 1: only by their most likely tokens. (≥ 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Generic(Strategy):
    """`z = L_base − α relu(L_reinforced − L_base)`

    Who's Harry Potter? Approximate Unlearning in LLMs (Eldan and Russinovich 2023, arXiv:2310.02238), on log-probs:
    on raw logits the answer would depend on the members' arbitrary offsets. Roles: the base is the target,
    `reinforced` the same model trained further on what shall be forgotten.
    """

    strategy = "generic"
    reinforced: RoleObject | str
    """The base, trained further on what shall be forgotten."""
    alpha: float = 1.0
    """Strength. (> 0, ≤ 10)"""


@dataclass(frozen=True, kw_only=True)
class Causal(Strategy):
    """`z = log (1/K) Σ_k p_base(· | prompt about others_k)`

    Revisiting Who's Harry Potter: Towards Targeted Unlearning from a Causal Intervention Perspective (Liu et al. 2024,
    arXiv:2407.16997). One model reads the request's prompt K times, each time with other names in the place of those
    that shall be forgotten. `names` are one or several forms of a name ("Harry Potter", "Harry"), whole words only;
    every entry of `others` has as many, in the same order. What the model knows by the name is gone, what it says of
    anybody stays. A prompt without the name is answered as always. The base itself is read beside the K for traces and
    for usage, so that a token costs K + 1 rows of one forward.
    """

    strategy = "causal"
    names: str | Sequence[str]
    """How the one is called whom the answer shall not know: a text, or several forms of the name."""
    others: Sequence[str | Sequence[str]]
    """Who stands in, one after the other: each as many texts as `names` has. (1 to 8 of them)"""


@dataclass(frozen=True, kw_only=True)
class Cascade(Strategy):
    """`z = L_small` where the small model is sure, of the token or of its whole answer, else `L_base`

    Speculative Decoding with Big Little Decoder (Kim et al. 2023, arXiv:2302.07863): its fallback, by the largest
    probability. Confident Adaptive Language Modeling (Schuster et al. 2022, arXiv:2207.07061): the lead of that over
    the second. Roles: the base is the large model, `small` the one that answers as long as it is sure. Per token both
    compute every token, and the trace's `alpha` is the small model's share of the token, 1 or 0.

    Per request the small model writes the whole answer alone, and the large one another where that was not sure:
    Language Model Cascades: Token-level uncertainty and beyond (Gupta et al. 2024, arXiv:2404.10136). How sure it was
    of each token is read after the request's masks, before biases, penalties and the request's temperature, up to the
    answer's end, which counts. `aggregate` makes one number of them: of `max_prob` the `mean` is the geometric one, the
    `sum` the product, which is the probability of a greedy answer. Every choice is judged by itself.
    """

    strategy = "cascade"
    small: RoleObject | str
    """The model that answers where it is sure."""
    measure: Literal["max_prob", "margin", "entropy"] = "max_prob"
    """How sure it is: its largest probability, the lead of that over the second largest (`margin`), its entropy."""
    threshold: float | None = None
    """It is sure from this on, 0.7 unless given, `margin` 0.5; with `entropy` up to this, 1 nat unless given. (≥ 0, ≤
    100)"""
    per: Literal["token", "request"] = "token"
    """What it must be sure of: of each token that it writes, or of its whole answer."""
    aggregate: Literal["mean", "sum", "quantile", "first"] | None = None
    """What the tokens make of the answer, per request: their mean unless given, sum, quantile, or the first alone."""
    quantile: float | None = None
    """Which quantile, 0 unless given: 0 is the least sure token, 1 the surest. (≥ 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Discriminator(Strategy):
    """`z = L_base + ω log σ(s)`, s the mean over the tokens so far and v of `L_wanted − L_unwanted`

    GeDi: Generative Discriminator Guided Sequence Generation (Krause et al. 2020, arXiv:2009.06367). `wanted` and
    `unwanted` are usually one small model under two prompts, each a class and then the same text. The tokens so far
    are those of that text, the longest ending that both prompts share, and all that followed it. Kept are the tokens
    of the highest σ(s) until they hold `mass` of softmax(z) (1 − filter_p of the authors' code), and all with
    σ(s) ≥ `posterior`; `mass` 1 keeps all.
    """

    strategy = "discriminator"
    wanted: RoleObject | str
    """The model of texts as they should be."""
    unwanted: RoleObject | str
    """The model of texts as they should not be."""
    omega: float = 30.0
    """Strength ω of the judgement. (≥ 0, ≤ 100)"""
    mass: float = 0.2
    """Tokens are kept, best judged first, until they hold this probability under the composition; 1 keeps all. (> 0, ≤
    1)"""
    posterior: float = 0.8
    """Tokens judged to be wanted with at least this probability are kept besides. (> 0, < 1)"""


@dataclass(frozen=True, kw_only=True)
class Dynamic(Strategy):
    """`z = L_base + Σ_i w_i α_i (L_expert_i − L_antiexpert_i)`, α ≤ `alpha_max` and `KL(p_α‖p_base) = KL(p_exp‖p_anti)`

    On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion (Fan et al. 2024, arXiv:2406.15480).
    `symmetric` minimises the squares of the differences in both directions of the divergence. One pair is written flat
    (`expert`, `antiexpert`), several as `pairs` with a `weight` (1) each: every α_i is solved for its pair alone, then
    weighted. The trace reports α.
    """

    strategy = "dynamic"
    expert: RoleObject | str | None = None
    """The model that shows the behaviour. Excludes `pairs`."""
    antiexpert: RoleObject | str | None = None
    """The same model without it."""
    pairs: Sequence[ExpertPair] | None = None
    """Several pairs, each with a strength of its own. (1 to 8 of them)"""
    alpha_max: float = 2.0
    """The largest strength α that may be chosen. (> 0, ≤ 10)"""
    symmetric: bool = False
    """Match both directions of the KL instead of one."""


@dataclass(frozen=True, kw_only=True)
class Budget(Strategy):
    """`z = L_base + α (L_expert − L_antiexpert)` with the largest α ≤ `alpha_max` such that `KL(p_α‖p_base) ≤ ε`

    Proxy-tuning whose every token stays within ε nats of the base. The trace reports α. Any other sum of shifts is
    capped by the `budget` of `compose`.
    """

    strategy = "budget"
    expert: RoleObject | str
    """The model that shows the behaviour."""
    antiexpert: RoleObject | str
    """The same model without it."""
    epsilon: float = 0.5
    """Most that a token's distribution may move away from the base, as KL in nats. (> 0, ≤ 100)"""
    alpha_max: float = 1.0
    """The largest strength α that may be chosen. (> 0, ≤ 10)"""


@dataclass(frozen=True, kw_only=True)
class Routed(Strategy):
    """`z = L_assistant where d > threshold, else L_base`; without a threshold `z = log((1 − d) p_base + d p_assistant)`

    Learning to Decode Collaboratively with Multiple Language Models (Shen et al. 2024, arXiv:2403.03870). R2R:
    Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing (Fu et al. 2025,
    arXiv:2505.21600). d is what a head says of the base's next token, which the base's folder brings with it; the base
    is the model that it was trained on. It is a gate, the sigmoid of a linear head on the last hidden state, which the
    objective `gate` trains, or a router, the sigmoid of a feed-forward network on the last hidden state, the
    probabilities of the most likely tokens and the embedding of the first of them, which `router` trains.
    `threshold: null` mixes. The trace reports d as `head`. A `schedule` multiplies d, which is 1 at most.
    """

    strategy = "routed"
    assistant: RoleObject | str
    """The model that is asked where d is large: the one that the head was trained with."""
    threshold: float | str | None = "own"
    """The assistant speaks where d is larger; `own`: than its training chose, than 0.5 of a gate; null: both speak. (≥
    0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class AdaptiveTemperature(Strategy):
    """`z = L_base / t`; with `expert` and `antiexpert` `z = L_base + t (L_expert − L_antiexpert)`

    Adaptive Decoding via Latent Preference Optimization (Dhuliawala et al. 2024, arXiv:2411.09661); To Cool or not to
    Cool? Temperature Network Meets Large Foundation Models via DRO (Qiu et al. 2024, arXiv:2404.04575). t, the token's
    temperature or the strength of the shift, is what a head on the base's last hidden state says, which the objective
    `temperature_head` trains and the base's folder brings with it. Reported log-probs are those at t; the request's
    `temperature` divides once more, so 1 draws from them. The trace reports t as `head`. A `schedule` is the exponent
    of a temperature, and multiplies a strength.
    """

    strategy = "adaptive_temperature"
    expert: RoleObject | str | None = None
    """The model that shows the behaviour whose strength the head gives; left out, the head gives temperatures."""
    antiexpert: RoleObject | str | None = None
    """The same model without it."""


@dataclass(frozen=True, kw_only=True)
class Adapters(Strategy):
    """`z = share·L_base + (1 − share) Σ_c w_c L_c`, `w = softmax_c((cos(h, μ_c) − m_c) / σ_c)`

    Ensembles of Low-Rank Expert Adapters (Li et al. 2025, arXiv:2502.00089). Each adapter was trained on one cluster of
    prompts, in the paper from an adapter of all data on, with which the backbone is its L_base. h is the feature of the
    request's prompt, μ_c the mean of the features of cluster c, m_c and σ_c mean and standard deviation of the cosine
    of that cluster's own prompts with μ_c. All of these are a head of the base's
    folder, which the objective `similarity_head` makes. The weights are decided once, behind the last token of the
    prompt, and hold for the whole answer; of a scored prompt, every token has those of the prompt up to it. The paper's
    feature is a projected gradient of the instruction, a backward pass for every request; here it is the base's last
    hidden state behind the prompt, which the forward computes anyhow, as the paper's own comparison with embeddings of
    the instruction has it. With `share` 0.5 the base counts as much as all adapters together: greedily the tokens of
    `L_base + Σ_c w_c L_c`, while weights that sum to 1 make temperature 1 a geometric mean. The trace reports w as
    `alpha`. A `schedule` multiplies what the adapters add to the base.
    """

    strategy = "adapters"
    adapters: RoleObject | str | Sequence[RoleObject | str]
    """The adapters, in the order of the clusters that the base's head has; models of its tokens do as well."""
    share: float = 0.5
    """Weight of the base itself; 0 leaves the adapters alone, 1 the base. (≥ 0, ≤ 1)"""


@dataclass(frozen=True, kw_only=True)
class Compose(Strategy):
    """`z = L_base + α Σ shifts`: the parts' shifts are added onto one base, masks intersect, rules add.

    A part may repeat the base, but not name another one. Parts cannot be stacks themselves. α is 1; with a `budget` it
    is the largest for which `KL(p_α‖p_base) ≤ ε`, as in strategy `budget`, and the trace reports it. Masks and rules
    come afterwards and are not counted. A `schedule` here is that of the parts without one.
    """

    strategy = "compose"
    compose: Sequence[Part]
    """The strategies whose shifts are added. (1 to 8 of them)"""
    budget: Cap | None = None
    """Most that the sum may move a token's distribution away from the base; left out, as far as it does."""


Part: TypeAlias = (
    ProxyTuning
    | Eft
    | Contrastive
    | LayerContrast
    | Novelty
    | Unlearn
    | Divergence
    | ContextAware
    | Hesitation
    | Guidance
    | Experts
    | Product
    | RuleAdapter
    | Mixture
    | Sparse
    | Generic
    | Causal
    | Cascade
    | Discriminator
    | Dynamic
    | Budget
    | Routed
    | AdaptiveTemperature
    | Adapters
)
Composition: TypeAlias = Part | Compose

__all__ = [
    "Adapters",
    "AdaptiveTemperature",
    "BaseObject",
    "Budget",
    "Cap",
    "Cascade",
    "Causal",
    "Compose",
    "Composition",
    "Context",
    "ContextAware",
    "Contrastive",
    "Discriminator",
    "Divergence",
    "Dynamic",
    "Eft",
    "EosRamp",
    "ExpertPair",
    "Experts",
    "Generic",
    "Guidance",
    "Hesitation",
    "LayerContrast",
    "MemberObject",
    "MixedObject",
    "Mixture",
    "Novelty",
    "Part",
    "Product",
    "ProxyTuning",
    "RoleMessage",
    "RoleObject",
    "Routed",
    "RuleAdapter",
    "Sparse",
    "Strategy",
    "TimedPoint",
    "Timing",
    "TraceOptions",
    "Trait",
    "Unlearn",
]
