"""From a query to what the engine is asked: composition → plan → contexts → grammar and sampling → checked job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from anyio import CapacityLimiter, to_thread

from motet.composers.plan import Plan
from motet.composers.spec import CompositionError, from_guidance_fields, parse_composition
from motet.engines.base import (
    Engine,
    GenerationRequest,
    RequestTooLarge,
    SamplingParams,
    UnsupportedRequest,
)
from motet.models.tokenizer import Tokenizer
from motet.operator.registry import LoadedModel, Registry, UnknownModel
from motet.server.errors import ApiError, as_api_error, invalid
from motet.server.prompts import RequestPrompt, check_tokens, continuation, max_new_tokens, read
from motet.server.query import Query, ScoreQuery
from motet.server.schemas import Target
from motet.server.service import Service
from motet.server.structured import compiled_grammar

TOKENIZING = CapacityLimiter(2)  # threads of their own: a client that leaves while it waits for one is not tokenized
COLDEST = 1e-6  # a temperature below it is greedy
NO_SEED = -1  # as in vLLM and llama.cpp: interfaces that always send a seed say by it that they want none


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


async def prepare(service: Service, query: Query | ScoreQuery) -> list[Job]:
    """The jobs of a query. Tokenizing takes a while and has threads of its own, as compiling has;
    the engine is asked in the event loop.

    Raises:
        ApiError, CompositionError, UnknownModel: whatever can be known before anything is computed.
    """
    jobs = await to_thread.run_sync(_jobs, service, query, limiter=TOKENIZING)
    if isinstance(query, Query):
        jobs = [await _with_grammar(job, query, service.registry) for job in jobs]
    return [checked(job, service.engine) for job in jobs]


def _jobs(service: Service, query: Query | ScoreQuery) -> list[Job]:
    return list(_scoring(service, query) if isinstance(query, ScoreQuery) else _answering(service, query))


def _answering(service: Service, query: Query) -> Iterator[Job]:
    """Every prompt under every target; number i of them is request `ID-i` to the engine."""
    for i, target in enumerate(query.targets):
        plan = _target_plan(query, i, target, service.registry)
        for k, prompt in enumerate(query.prompts):
            yield _job(service, query, plan, prompt, f"{query.request_id}-{i * len(query.prompts) + k}")


def _job(service: Service, query: Query, plan: Plan, prompt: RequestPrompt, request_id: str) -> Job:
    members, base = service.registry.members, service.registry.base_of(plan)
    tokens = read(plan, prompt, members, score_prompt=query.score_prompt)
    check_tokens(tokens.forced, base, prompt.param)
    begun = replace(tokens, forced=tokens.forced + _answer_prefix(query, plan, prompt, base))
    max_tokens = max_new_tokens(begun, members, service.kv_budget, query.max_tokens)
    request = GenerationRequest(
        request_id,
        plan,
        tokens.contexts,
        sampling(query, base, max_tokens),
        begun.forced,
        num_prompt_forced=len(tokens.forced),
        n=query.n,
        cache_salt=query.cache_salt,
    )
    return Job(request, base.tokenizer, tokens.prompt_ids, prompt.text)


async def _with_grammar(job: Job, query: Query, registry: Registry) -> Job:
    grammar = await compiled_grammar(query.fields, job.plan, registry)
    if grammar is not None and query.fields.answer_prefix is not None:
        raise invalid("'answer_prefix' excludes structured outputs: a grammar holds for drawn tokens.", "answer_prefix")
    return replace(job, request=replace(job.request, sampling=replace(job.request.sampling, grammar=grammar)))


def _scoring(service: Service, query: ScoreQuery) -> Iterator[Job]:
    """Every continuation behind the prompt, forced; nothing is generated."""
    plan = plan_of(query.target, service.registry, chat=query.prompt.messages is not None)
    members, base = service.registry.members, service.registry.base_of(plan)
    prompt = read(plan, query.prompt, members)
    params = SamplingParams(
        max_tokens=0,
        temperature=0.0,
        top_logprobs=1,
        trace_top=query.trace or 0,
        trace_members=query.trace_members,
    )
    for i, text in enumerate(query.continuations):
        tokens = replace(prompt, forced=_continuation(text, plan, query.prompt, base, "continuations"))
        max_new_tokens(tokens, members, service.kv_budget, asked=0)
        request = GenerationRequest(
            f"{query.request_id}-{i}", plan, tokens.contexts, params, tokens.forced, cache_salt=query.cache_salt
        )
        yield Job(request, base.tokenizer, tokens.prompt_ids)


def _target_plan(query: Query, index: int, target: Target, registry: Registry) -> Plan:
    """The target's plan; a refusal of a comparison's candidate says which one."""
    try:
        return plan_of(target, registry, chat=query.form == "chat")
    except (ApiError, CompositionError, UnknownModel) as refusal:
        if query.labels is None:
            raise
        where, error = f"candidates.{index}", as_api_error(refusal)
        param = f"{where}.{error.param}" if error.param else where
        raise ApiError(error.status_code, f"{where}: {error.detail}", param=param, code=error.code) from refusal


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


def _answer_prefix(query: Query, plan: Plan, prompt: RequestPrompt, base: LoadedModel) -> tuple[int, ...]:
    """Token ids that the answer begins with."""
    given = query.fields.answer_prefix
    return () if given is None else _continuation(given, plan, prompt, base, "answer_prefix")


def _continuation(
    text: str | list[int], plan: Plan, prompt: RequestPrompt, base: LoadedModel, param: str
) -> tuple[int, ...]:
    """Token ids of a continuation, the same for all streams: those behind what the base reads."""
    ids = tuple(text) if isinstance(text, list) else continuation(text, plan.streams[0], base, prompt)
    if not ids:
        raise invalid(f"{param}: {text[:40]!r} has no tokens.", param)
    check_tokens(ids, base, param)
    return ids


def sampling(query: Query, member: LoadedModel, max_tokens: int) -> SamplingParams:
    """The sampling parameters over the vocabulary of the base `member`.

    Raises:
        ApiError: 400, ids that the vocabulary does not have, more minimum than maximum tokens.
    """
    body, shown = query.fields, query.display
    if (body.min_tokens or 0) > max_tokens:
        raise invalid(f"'min_tokens' {body.min_tokens} is more than 'max_tokens' {max_tokens}.", "min_tokens")
    for name in ("stop_token_ids", "allowed_token_ids"):
        check_tokens(getattr(body, name) or (), member, name)
    allowed = None if body.allowed_token_ids is None else tuple(dict.fromkeys(body.allowed_token_ids))
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_temperature(body.temperature),
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=None if body.seed == NO_SEED else body.seed,
        min_tokens=body.min_tokens or 0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=_bias(body.logit_bias or {}, member),
        allowed_token_ids=allowed,
        bad_words=_bad_words(body.bad_words or [], member),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        top_logprobs=max(shown.logprobs or 0, shown.prompt_logprobs or 0),
        trace_top=shown.trace,
        trace_members=shown.trace_members,
    )


def _temperature(asked: float | None) -> float:
    """So near to 0 only the arg-max is left in float32, and dividing by it could overflow."""
    return 1.0 if asked is None else asked if asked >= COLDEST else 0.0


def _bias(bias: Mapping[str, float], member: LoadedModel) -> tuple[tuple[int, float], ...]:
    wrong = next((key for key in bias if not (key.isascii() and key.isdigit() and len(key) < 10)), None)
    if wrong is not None:
        raise invalid(f"logit_bias: {wrong[:40]!r} is no token id.", "logit_bias")
    pairs = tuple((int(key), value) for key, value in bias.items())
    check_tokens([token for token, _ in pairs], member, "logit_bias")
    return pairs


def _bad_words(words: list[str], member: LoadedModel) -> tuple[tuple[int, ...], ...]:
    """Every word as it is tokenized at the start of a text and behind a space."""
    spellings = [spelling for word in words for spelling in (word, f" {word.lstrip()}")]
    tokenized = (tuple(member.tokenizer.encode(spelling)) for spelling in spellings)
    sayable = (tokens for tokens in tokenized if all(token < member.info.vocab_size for token in tokens))
    return tuple(dict.fromkeys(tokens for tokens in sayable if tokens))


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
