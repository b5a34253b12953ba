"""A validated request → what the engine is asked, one job per prompt (and per candidate of a comparison)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from motet.composers.plan import Plan
from motet.composers.spec import from_guidance_fields, parse_composition
from motet.engines.base import Engine, GenerationRequest, RequestTooLarge, UnsupportedRequest
from motet.models.tokenizer import Tokenizer
from motet.operator.registry import LoadedModel, Registry
from motet.server.errors import ApiError, invalid
from motet.server.prompts import RequestPrompt, contexts
from motet.server.schemas import Target

DEFAULT_SHARE = 0.75  # of the KV memory that a choice may reserve when the request sets no limit


@dataclass(frozen=True)
class Display:
    """How a request's tokens are shown. `logprobs`, `prompt_logprobs`, `trace`: None is off, else how many
    alternatives beside the token itself."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    trace: int | None = None
    token_ids: bool = False
    tokens_as_ids: bool = False


@dataclass(frozen=True)
class Job:
    """One prompt under one plan. `prompt_ids` is the base stream's whole prompt, forced tokens included."""

    request: GenerationRequest
    tokenizer: Tokenizer  # the base's
    prompt_ids: tuple[int, ...]
    prompt_text: str | None = None  # as the client wrote it, for echo
    kv_bytes: int = 0  # of one choice

    @property
    def plan(self) -> Plan:
        return self.request.plan

    @property
    def base(self) -> str:
        return self.plan.streams[0].model

    @property
    def computes(self) -> bool:
        """Whether the engine has anything to do: an echo of one token with no answer needs nothing."""
        return self.request.sampling.max_tokens > 0 or bool(self.request.forced)


@dataclass(frozen=True)
class Reading:
    """What the streams of a plan read, and the tokens that are then forced on all of them."""

    plan: Plan
    contexts: tuple[tuple[int, ...], ...]
    forced: tuple[int, ...] = ()
    param: str = "prompt"  # the request's field that is read

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.contexts[0] + self.forced

    def sizes(self) -> list[int]:
        return [len(ids) + len(self.forced) for ids in self.contexts]


def read(
    plan: Plan, prompt: RequestPrompt, members: Mapping[str, LoadedModel], *, score_prompt: bool = False
) -> Reading:
    """Renders the contexts. With `score_prompt` all but the prompt's first token is forced instead of read.

    Raises:
        ApiError: 400, as `contexts` does, or streams that read different prompts where the prompt is to be scored.
    """
    rendered = contexts(plan, prompt, members)
    if not score_prompt:
        return Reading(plan, rendered, param=prompt.param)
    unlike = next((k for k, ids in enumerate(rendered) if ids != rendered[0]), None)
    if unlike is not None:
        raise invalid(
            "The log-probabilities of a prompt are those of one text, but role "
            f"{plan.streams[unlike].role!r} reads another prompt than the base. Score continuations with /v1/score.",
            "echo",
            "unlike_contexts",
        )
    return Reading(plan, tuple(ids[:1] for ids in rendered), rendered[0][1:], prompt.param)


def max_new_tokens(reading: Reading, members: Mapping[str, LoadedModel], kv_budget: int, asked: int | None) -> int:
    """`asked`, or what fits: into the context of every stream's model, and into `kv_budget` bytes (0: no limit).

    Raises:
        ApiError: 400 context_length_exceeded, with the numbers.
    """
    models = [members[stream.model].info for stream in reading.plan.streams]
    left = min(info.max_model_len - size for info, size in zip(models, reading.sizes(), strict=True))
    if left < min(1 if asked is None else asked, 1):
        raise _too_long(reading, members, requested=None)
    if asked is not None and asked > left:
        raise _too_long(reading, members, requested=asked)
    if asked is not None:
        return asked
    per_token = sum(info.kv_bytes_per_token for info in models)
    if not kv_budget or not per_token:
        return left
    held = int(kv_budget * DEFAULT_SHARE) // per_token
    return max(1, min(left, held - max(reading.sizes())))


def _too_long(reading: Reading, members: Mapping[str, LoadedModel], requested: int | None) -> ApiError:
    """OpenAI's refusal, about the stream with the least room."""
    sizes = reading.sizes()
    limits = [members[stream.model].info.max_model_len for stream in reading.plan.streams]
    worst = min(range(len(sizes)), key=lambda k: limits[k] - sizes[k])
    stream, size = reading.plan.streams[worst], sizes[worst]
    asked = (
        f"your prompt has {size} tokens"
        if requested is None
        else f"you requested {size + requested} tokens ({size} in the prompt, {requested} to generate)"
    )
    whose = f"model {stream.model!r}" + (f" in role {stream.role!r}" if len(sizes) > 1 else "")
    message = f"The maximum context length of {whose} is {limits[worst]} tokens. However, {asked}."
    return invalid(message, "max_tokens" if requested else reading.param, "context_length_exceeded")


def plan_of(target: Target, registry: Registry, *, chat: bool = False) -> Plan:
    """The plan of the model and composition that a request names; `chat`: its prompt is messages.

    Raises:
        UnknownModel, CompositionError: as `Registry.plan`, `parse_composition`.
        ApiError: 400, both a composition and guidance fields.
    """
    guided = target.guidance_scale is not None or target.negative_prompt is not None
    if guided and target.composition is not None:
        raise invalid("'guidance_scale' and 'negative_prompt' exclude 'composition'.", "guidance_scale")
    if guided:
        written = from_guidance_fields(target.guidance_scale, target.negative_prompt)
    else:
        written = None if target.composition is None else parse_composition(target.composition)
    return registry.plan(target.model, written, chat=chat)


def checked(job: Job, engine: Engine) -> Job:
    """The job with the KV bytes of one choice.

    Raises:
        ApiError: 400, the engine does not run this plan, or the request can never fit (RequestTooLarge's numbers).
    """
    if (reason := engine.supports(job.plan)) is not None:
        raise _unsupported(reason)
    if not job.computes:
        return job
    try:
        return replace(job, kv_bytes=engine.check(job.request))
    except UnsupportedRequest as refusal:
        raise _unsupported(str(refusal)) from refusal
    except RequestTooLarge as refusal:
        raise invalid(str(refusal), "max_tokens", "request_too_large") from refusal


def _unsupported(reason: str) -> ApiError:
    return invalid(f"This engine does not run the composition: {reason}", "composition", "unsupported_composition")
