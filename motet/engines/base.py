"""What an engine is: the interface between the HTTP server and whatever computes tokens.

Two engines give the same answers: `torch` (embedded) and `vllm` (scale-out). This module imports only the standard
library, `composers.confidence`, `composers.plan`, `drafts`, `outputs` and `models.info`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from motet.composers.confidence import Confidence
from motet.composers.plan import Plan
from motet.engines.drafts import Speculation
from motet.engines.outputs import EngineStats, StepTimes, TokenOutput
from motet.models.info import ModelInfo

# why no engine runs a cascade per request
SIDES = "whole answers are judged: Motet's server asks for the small model's answer, and then for the large one's"


class EngineError(Exception):
    """A request failed inside the engine (a member raised, non-finite logits). The engine goes on."""


class EngineStopped(EngineError):
    """The engine has ended, by a defect or because the server does: nothing is wrong with the request."""


class ModelLeft(EngineError):
    """A model of the request was unloaded before it began to run."""


class NoTokenPossible(EngineError):
    """The request's own masks exclude each other (its allowed tokens and its composition's, say)."""


class GrammarFailed(EngineError):
    """The request's grammar cannot be followed further (it grew beyond the limits of its library)."""


class UnsupportedRequest(Exception):
    """This engine does not run the request, though it runs its plan: the message says why."""


class RequestTooLarge(Exception):
    """The request can never fit: the message has the numbers (tokens, bytes, limits)."""


class Matcher(Protocol):
    """Follows one answer through its grammar."""

    def allowed(self, generated: Sequence[int]) -> bytes | bytearray | memoryview:
        """Which of V tokens may follow what was generated: ⌈V/32⌉ int32 words, bit v mod 32 of word ⌊v/32⌋ set for
        token v. `generated` may be any beginning of an answer, also a shorter or another one than before.

        Raises:
            GrammarFailed: the grammar cannot be followed further.
        """
        ...


@dataclass(frozen=True, slots=True)
class ThoughtPhase:
    """A thought before the answer. `begin` are the tokens that the answer begins with where it thinks (none: the prompt
    has begun the thought), `tag` is the text that ends it, `end` the tokens that end it when it has `budget` tokens
    (None: any number)."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    tag: str
    budget: int | None = None


class Grammar(Protocol):
    """What an answer must look like (a schema, a regular expression), compiled for a tokenizer. It holds for drawn
    tokens; forced ones are no part of the answer."""

    @property
    def text(self) -> str:
        """The grammar itself, for engines that compile it elsewhere."""
        ...

    @property
    def thought(self) -> ThoughtPhase | None:
        """What comes before that which `text` says."""
        ...

    @property
    def closing(self) -> int | None:
        """Behind how many tokens open JSON is closed; None: it is not."""
        ...

    def start(self, ends: Sequence[int]) -> Matcher:
        """A matcher of one answer, which the tokens `ends` may end exactly where the grammar may end."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one token is drawn from the composed distribution. Validated at the HTTP boundary.

    Order: masks (allowed, grammar, banned, min_tokens) → logit bias → repetition penalty → presence, frequency
    penalties → temperature → top-k → top-p → min-p → sample. A grammar that has finished ends the answer
    whatever `min_tokens` and `ignore_eos` say. `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p`
    0 mean off. Reported log-probs are those of the composed distribution after masks, before bias and penalties.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    grammar: Grammar | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = 0  # how many alternatives to report per token
    logprob_token_ids: tuple[int, ...] = ()  # those to report instead; `top_logprobs` is their number
    trace_top: int | None = None  # None: no trace; else alternatives before and after composition
    trace_members: bool = False  # the trace also tells `Voices`
    confidence: Confidence | None = None  # how sure the reported distribution is, to be told with each token

    @property
    def goes_on(self) -> bool:
        """Whether no end of a sequence ends the answer; a grammar's does, which allows nothing behind it."""
        return self.ignore_eos and self.grammar is None

    @property
    def reads_rows(self) -> bool:
        """Whether what is reported is read off whole distributions, which a draw need not have written."""
        return self.trace_members or self.confidence is not None

    @property
    def reports_more(self) -> bool:
        """Whether a token is told with more than log-probs."""
        return self.trace_top is not None or self.confidence is not None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`contexts[k]` are the token ids (≥ 1) that stream k reads, the base's for its early exits; `forced` tokens are
    appended to every stream and scored instead of sampled, then up to `sampling.max_tokens` tokens are generated. `n`
    independent choices. What is computed for one `cache_salt` spares nothing to requests with another. `by_member`:
    nobody reads log-probs of what is generated, so it may be drawn from single members (see `drawn`); its outputs then
    have that member's."""

    request_id: str
    plan: Plan
    contexts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    forced: tuple[int, ...] = ()
    num_prompt_forced: int = 0  # the first of `forced` that are a scored prompt's: rules do not count them as written
    n: int = 1
    cache_salt: str = ""
    speculation: Speculation | None = None  # None: as the engine is set
    by_member: bool = False


def refuse_empty(request: GenerationRequest) -> None:
    """Raises ValueError: what no engine can do, whatever its memory holds."""
    if not request.forced and request.sampling.max_tokens < 1:
        raise ValueError("a request must score or generate at least one token")
    if not all(request.contexts):
        raise ValueError("every stream needs a context of at least one token")
    for stream, context in zip(request.plan.streams, request.contexts, strict=True):
        if stream.exit is not None and context != request.contexts[0]:
            raise ValueError(f"stream {stream.role!r} is an early exit of the base, which reads another context")


class Generation(Protocol):
    """A running request: iterate it for outputs of all choices, interleaved as they come.

    Iteration ends when every choice has finished; it raises `EngineError` if the request failed. `aclose` (or
    closing the iterator) frees all slots within one step.
    """

    @property
    def cached_tokens(self) -> int:
        """Tokens of the base stream's context that were not computed again, as far as it is known: with the first
        output."""
        ...

    @property
    def queued_seconds(self) -> float:
        """How long the first choice waited for memory, as far as it is known: with the first output."""
        ...

    def __aiter__(self) -> AsyncIterator[TokenOutput]: ...
    async def __anext__(self) -> TokenOutput: ...
    def stop_choice(self, choice: int) -> None:
        """The reader needs no more tokens of this choice (a stop string matched)."""
        ...

    async def aclose(self) -> None: ...


def ends_of(plan: Plan, infos: Mapping[str, ModelInfo]) -> tuple[int, ...]:
    """End-of-sequence ids of the base and of every stream that the composition is drawn to: an expert ends its answers
    in its own way. Ids that not all members have are none; those of a member with other tokens are the base's for
    them."""
    width = common_width(plan, infos)
    found: list[int] = []
    for k, stream in enumerate(plan.streams):
        ends = infos[stream.model].eos_token_ids if k == 0 or stream.weight > 0 else ()
        if stream.tokens is None:
            found += ends
        else:
            found += [own for end in ends if (own := stream.tokens.back.get(end)) is not None]
    return tuple(dict.fromkeys(end for end in found if end < width))


def common_width(plan: Plan, infos: Mapping[str, ModelInfo]) -> int:
    """The ids that all members of a plan have are those below it: what is composed. A member with other tokens has all
    of the base's, one way or the other."""
    return min(infos[stream.model].vocab_size for stream in plan.streams if stream.tokens is None)


def unlike_clusters(plan: Plan, base: ModelInfo) -> str | None:
    """Why the plan's adapters are not one for each cluster that its base's head knows; None where they are."""
    given = len(plan.streams) - 1
    if "similarity" not in plan.heads or given == len(base.clusters):
        return None
    return (
        f"{given} adapter{'s' * (given != 1)} for the {len(base.clusters)} clusters that {base.name!r} knows; give one "
        f"for each, in this order: {', '.join(base.clusters)}"
    )


@runtime_checkable
class WatchesSteps(Protocol):
    """An engine that computes in this process."""

    def watch_steps(self, report: Callable[[StepTimes], None]) -> None:
        """From now on `report` is called after every step, in the engine's thread."""
        ...


class Engine(Protocol):
    """Computes tokens of composed distributions. All methods are called from the server's event loop."""

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...

    @property
    def is_alive(self) -> bool:
        """Whether new requests can be computed: false once closed, or after a defect that ended the engine."""
        ...

    def supports(self, plan: Plan) -> str | None:
        """None, or the reason why this engine can't run the plan."""
        ...

    def check(self, request: GenerationRequest) -> int:
        """KV bytes that one choice of the request reserves over all its streams.

        Raises:
            RequestTooLarge: it can never fit; the message names tokens, bytes and the limit.
            UnsupportedRequest: contexts or reports that this engine cannot serve.
        """
        ...

    def generate(self, request: GenerationRequest) -> Generation:
        """Queues the request; nothing is computed before the first admission.

        Call `check` first: it is not repeated here. What was not checked and cannot fit into memory fails later; what
        is longer than its models' contexts is computed.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None:
        """Stops the engine; running requests fail with EngineError."""
        ...
