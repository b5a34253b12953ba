"""From a query to what the engine is asked: composition → plan → contexts → grammar and sampling → checked job."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from motet.composers.confidence import Judge
from motet.composers.plan import Plan, Prompt, Stream
from motet.composers.rules import EscalationRule
from motet.composers.spec import CompositionError, from_guidance_fields, parse_composition
from motet.engines.base import Engine, GenerationRequest, RequestTooLarge, SamplingParams, UnsupportedRequest
from motet.engines.drafts import OFF
from motet.engines.drawn import DrawsMembers
from motet.engines.outputs import TokenOutput
from motet.models.tokenizer import Tokenizer
from motet.operator.gates import Decision
from motet.operator.loaded import LoadedModel
from motet.operator.policies import Allow
from motet.operator.registry import Registry, UnknownModel
from motet.server.answer_size import check_scores, fit_answer
from motet.server.dialogue.answer_form import AnswerForm, form_of, grammar_of, in_dialect, with_thought
from motet.server.dialogue.highlights import Highlights
from motet.server.dialogue.parts import Syntax
from motet.server.encodings import Encodings
from motet.server.escalation import check_sides
from motet.server.gating import Decisions, decided
from motet.server.guard import check_drawn, check_messages, check_shown
from motet.server.http.errors import ApiError, as_api_error, invalid
from motet.server.pondering import Pondered, highlighted
from motet.server.prompts import (
    RenderedText,
    RequestPrompt,
    check_tokens,
    continuation,
    max_new_tokens,
    read,
    rendered_text,
    with_keys,
)
from motet.server.query import Query, ScoreQuery
from motet.server.service import Service
from motet.server.shapes.requests import Target
from motet.server.speculation import wish_of
from motet.server.translation import check_scorable

T = TypeVar("T")
TOKENIZING = CapacityLimiter(2)  # threads of their own
COLDEST = 1e-6  # a temperature below it is greedy
DIGITS = 1  # of log-probs under a policy
SECRET = secrets.token_bytes(32)  # what is drawn under a policy cannot be computed elsewhere
NO_SEED = -1  # as in vLLM and llama.cpp: interfaces that always send a seed say by it that they want none


@dataclass(frozen=True)
class Job:
    """One prompt under one plan. `prompt_ids` is the base stream's whole prompt, forced tokens included."""

    request: GenerationRequest
    tokenizer: Tokenizer  # the base's
    prompt_ids: tuple[int, ...]
    prompt_text: str | None = None  # as the client wrote it, where all of it is read
    rendered: RenderedText | None = None  # what the base's template made of it
    echo: str = ""  # the prompt's text where the answer repeats it
    form: AnswerForm = field(default_factory=AnswerForm)
    num_begun: int = 0  # tokens that the answer begins with
    kv_bytes: int = 0  # of one choice
    by_member: bool = False  # its tokens are drawn from single members (see `engines.drawn`)
    decision: Decision | None = None  # of the gate that chose the plan
    pondered: Pondered = field(default_factory=dict[int, Highlights])  # what streams read once more (`hesitation`)
    allow: Allow | None = None  # what the policy of the request's key opens; None: no policy
    escalation: Escalation | None = None  # who answers anew

    @property
    def plan(self) -> Plan:
        return self.request.plan

    @property
    def sides(self) -> tuple[Job, ...]:
        """The job, and the one that may answer anew."""
        return (self,) if self.escalation is None else (self, self.escalation.job)

    def with_sides(self, sides: Sequence[Job]) -> Job:
        """Such jobs in the place of `sides`."""
        first, *others = sides
        return replace(first, escalation=self.escalation and replace(self.escalation, job=others[0]))

    @property
    def base(self) -> str:
        """Of the composition, which answers anew where whole answers are judged."""
        return self.sides[-1].plan.streams[0].model

    @property
    def syntax(self) -> Syntax:
        return self.form.syntax

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt that the client sent, as the first member has it that reads this one, and all of it; the base's
        own where none does."""
        prompts = [stream.prompt or Prompt() for stream in self.plan.streams]
        whose = (k for k, prompt in enumerate(prompts) if not (prompt.is_own or prompt.last_tokens or prompt.swaps))
        return len(self.request.contexts[next(whose, 0)]) + self.num_scored

    @property
    def num_scored(self) -> int:
        """Tokens of the prompt, or of a continuation, that are scored instead of read."""
        return len(self.request.forced) - self.num_begun

    @property
    def computes(self) -> bool:
        """Whether the engine has anything to do: an echo of one token with no answer needs nothing."""
        return self.request.sampling.max_tokens > 0 or bool(self.request.forced)

    def reported(self, output: TokenOutput) -> TokenOutput:
        """What its readers may know of a token: under a policy log-probs are rounded."""
        if self.allow is None or self.allow.exact_logprobs:
            return output
        top = tuple((token, round(logprob, DIGITS)) for token, logprob in output.top)
        return replace(output, logprob=round(output.logprob, DIGITS), top=top)


@dataclass(frozen=True)
class Escalation:
    """How an answer is judged, and the job that answers anew where it is not sure."""

    judge: Judge
    job: Job


async def prepare(service: Service, query: Query | ScoreQuery) -> list[Job]:
    """The jobs of a query. Classifying and tokenizing take a while and have threads of their own, as compiling has;
    the engine is asked in the event loop.

    Raises:
        ApiError, CompositionError, UnknownModel: whatever can be known before anything is computed.
        NotAllowed: the policy of the request's key closes it.
    """
    if service.allow is not None and isinstance(query, Query):
        check_shown(query.display, query.n, service.allow)
    decisions: Decisions = await decided(service, query) if service.registry.gates else {}
    jobs = await tokenized(partial(_jobs, service, query, decisions, ()))
    if any(job.pondered for job in jobs):  # what does not fit as it is gets refused before its second reading is made
        asked = [checked(job, service.engine) for job in jobs]
        highlights = await highlighted(service, query, [job.pondered for job in asked])
        jobs = await tokenized(partial(_jobs, service, query, decisions, highlights))
    if isinstance(query, Query):
        jobs = [
            job.with_sides([await _with_grammar(side, query, service.registry) for side in job.sides]) for job in jobs
        ]
    for side in (side for job in jobs for side in job.sides):
        if side.allow is not None:
            check_drawn(side.request.sampling, query.display if isinstance(query, Query) else None, side.allow)
    return [job.with_sides([checked(side, service.engine) for side in job.sides]) for job in jobs]


async def tokenized(work: Callable[[Encodings], T], limiter: CapacityLimiter | None = None) -> T:
    """What `work` makes of a request's texts, in a thread (of `TOKENIZING`, or another limiter's), which begins no more
    of them once the client has left."""
    encodings = Encodings()

    def begun() -> T:
        encodings.check()
        return work(encodings)

    working = asyncio.ensure_future(to_thread.run_sync(begun, limiter=limiter or TOKENIZING))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        encodings.stop()
        working.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # which nobody reads
        raise


def _jobs(
    service: Service,
    query: Query | ScoreQuery,
    decisions: Decisions,
    highlights: Sequence[Pondered],
    encodings: Encodings,
) -> list[Job]:
    """`highlights`: what each job's streams ponder; empty: nothing is scored yet."""
    if isinstance(query, ScoreQuery):
        jobs = list(_scoring(service, query, decisions, highlights, encodings))
        check_scores(query, [job.request for job in jobs])
        return jobs
    jobs = list(_answering(service, query, decisions, highlights, encodings))
    return [job.with_sides(sides) for job, sides in zip(jobs, zip(*_fitted(query, jobs), strict=True), strict=True)]


def _fitted(query: Query, jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs as long as an answer may be, and, where there are any, those that answer anew; either is the answer."""
    is_held = any(job.escalation for job in jobs)
    for number in range(max(len(job.sides) for job in jobs)):
        sides = [job.sides[min(number, len(job.sides) - 1)] for job in jobs]
        fitted = fit_answer(query, [side.request for side in sides], is_held=is_held)
        yield [replace(side, request=request) for side, request in zip(sides, fitted, strict=True)]


def _answering(
    service: Service, query: Query, decisions: Decisions, highlights: Sequence[Pondered], encodings: Encodings
) -> Iterator[Job]:
    """Every prompt under every target; number i of them is request `ID-i` to the engine."""
    for i, target in enumerate(query.targets):
        for k, prompt in enumerate(query.prompts):
            decision = decisions.get((i, k))
            plan = _target_plan(query, i, target, service.registry, decision)
            number = i * len(query.prompts) + k
            own = highlights[number] if highlights else None
            name = f"{query.request_id}-{number}"
            check_sides(query, plan)
            first, *others = plan.sides or (plan,)
            job = _job(service, query, first, prompt, name, encodings, own)
            if isinstance(plan.rule, EscalationRule):
                anew = _job(service, query, others[0], prompt, f"{name}-anew", encodings, None)
                job = _escalating(plan.rule, job, anew)
            yield replace(job, decision=decision)


def _job(
    service: Service,
    query: Query,
    plan: Plan,
    asked: RequestPrompt,
    request_id: str,
    encodings: Encodings,
    pondered: Pondered | None,
) -> Job:
    """The job of one prompt under one plan."""
    members, base = service.registry.members, service.registry.base_of(plan)
    prompt = in_dialect(asked, plan, members, query)
    tokens = read(plan, prompt, members, encodings, score_prompt=query.score_prompt, pondered=pondered)
    begun = _answer_prefix(query, plan.streams[0], prompt, base, encodings)
    _check_prompt(service, tokens.plan, prompt, tokens.pondered)
    is_paced = service.allow is not None and not service.allow.speculation  # a stream's pace shall tell nothing
    check_tokens(tokens.forced, base, prompt.param)
    whole = replace(tokens, forced=tokens.forced + begun)
    max_tokens = max_new_tokens(whole, members, service.kv_budget, query.max_tokens)
    wish = query.fields.speculation
    request = GenerationRequest(
        request_id,
        with_thought(tokens.plan, prompt, members, base),
        tokens.contexts,
        _permitted(sampling(query, base, max_tokens), tokens.prompt_ids, service.allow),
        whole.forced,
        num_prompt_forced=len(tokens.forced),
        n=query.n,
        cache_salt=query.cache_salt,
        speculation=OFF if is_paced else None if wish is None else wish_of(wish, tokens.plan),
        by_member=not is_paced and query.display.logprobs is None,
    )
    text = prompt.text if prompt.truncate is None else None
    form = form_of(prompt, tokens.plan, service.registry, query)
    return Job(
        request,
        base.tokenizer,
        tokens.prompt_ids,
        text,
        rendered_text(tokens, prompt, base) if query.score_prompt and query.display.echo else None,
        (text or base.tokenizer.decode(tokens.prompt_ids)) if query.display.echo else "",
        form,
        len(begun),
        pondered=tokens.pondered,
        allow=service.allow,
    )


def _escalating(rule: EscalationRule, first: Job, anew: Job) -> Job:
    """The `first` job, told with what it is judged by."""
    sampling = replace(first.request.sampling, confidence=rule.judge.measure)
    return replace(first, request=replace(first.request, sampling=sampling), escalation=Escalation(rule.judge, anew))


def _check_prompt(service: Service, plan: Plan, prompt: RequestPrompt, pondered: Pondered) -> None:
    """Raises NotAllowed: messages that the policy of the request's API key closes, as they are or with what is read of
    them once more. Of a prompt that was read: they are no longer than a context."""
    if service.allow is None:
        return
    again = [one.text for one in pondered.values() if one.places and prompt.messages is not None and not one.is_own]
    for asked in (prompt, *(with_keys(prompt, text) for text in again)):
        check_messages(asked, plan, service.registry.members, service.allow)


def _permitted(asked: SamplingParams, prompt_ids: tuple[int, ...], allow: Allow | None) -> SamplingParams:
    """What was asked within a policy: no hotter than it allows, and where clients choose no seeds the same prompt draws
    the same answers."""
    if allow is None:
        return asked
    digest = hmac.digest(SECRET, repr(prompt_ids).encode(), "sha256")
    seed = asked.seed if allow.seeds else int.from_bytes(digest[:7], "big")
    return replace(asked, temperature=min(asked.temperature, allow.max_temperature), seed=seed)


async def _with_grammar(job: Job, query: Query, registry: Registry) -> Job:
    sampling = job.request.sampling
    grammar = await grammar_of(job.form, job.plan, registry, query, sampling.max_tokens)
    if grammar is not None and query.fields.answer_prefix is not None:
        raise invalid("'answer_prefix' excludes structured outputs: a grammar holds for drawn tokens.", "answer_prefix")
    return replace(job, request=replace(job.request, sampling=replace(sampling, grammar=grammar)))


def _scoring(
    service: Service, query: ScoreQuery, decisions: Decisions, highlights: Sequence[Pondered], encodings: Encodings
) -> Iterator[Job]:
    """Every continuation behind the prompt, forced; nothing is generated."""
    decision = decisions.get((0, 0))
    plan = plan_of(query.target, service.registry, decision, chat=query.prompt.messages is not None)
    check_sides(query, plan)
    check_scorable(plan, "composition")
    members, base = service.registry.members, service.registry.base_of(plan)
    asked = in_dialect(query.prompt, plan, members)
    prompt = read(plan, asked, members, encodings, pondered=highlights[0] if highlights else None)
    _check_prompt(service, plan, asked, prompt.pondered)
    shows_members = service.allow is None or service.allow.traces
    params = SamplingParams(
        max_tokens=0,
        temperature=0.0,
        top_logprobs=1,
        trace_top=query.trace or 0 if shows_members else query.trace,
        trace_members=query.trace_members,
    )
    for i, text in enumerate(query.continuations):
        ids = _continuation(text, plan.streams[0], asked, base, encodings, "continuations")
        tokens = replace(prompt, forced=ids)
        max_new_tokens(tokens, members, service.kv_budget, asked=0)
        request = GenerationRequest(
            f"{query.request_id}-{i}",
            with_thought(plan, asked, members, base),
            tokens.contexts,
            params,
            tokens.forced,
            cache_salt=query.cache_salt,
        )
        yield Job(
            request,
            base.tokenizer,
            tokens.prompt_ids,
            decision=decision,
            pondered=prompt.pondered,
            allow=service.allow,
        )


def _target_plan(query: Query, index: int, target: Target, registry: Registry, decision: Decision | None) -> Plan:
    """The target's plan; a refusal of a comparison's candidate says which one."""
    try:
        return plan_of(target, registry, decision, chat=query.form == "chat")
    except (ApiError, CompositionError, UnknownModel) as refusal:
        if query.labels is None:
            raise
        where, error = f"candidates.{index}", as_api_error(refusal)
        param = f"{where}.{error.param}" if error.param else where
        raise ApiError(error.status_code, f"{where}: {error.detail}", param=param, code=error.code) from refusal


def plan_of(target: Target, registry: Registry, decision: Decision | None = None, *, chat: bool = False) -> Plan:
    """The plan of the model and composition that a request names.

    Args:
        decision: what the gate of `model` said, where it has one.
        chat: its prompt is messages.

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
    return registry.plan(target.model, written, chat=chat, applied=decision is None or decision.applied)


def _answer_prefix(
    query: Query, stream: Stream, prompt: RequestPrompt, base: LoadedModel, encodings: Encodings
) -> tuple[int, ...]:
    """Token ids that the answer begins with."""
    given = query.fields.answer_prefix
    return () if given is None else _continuation(given, stream, prompt, base, encodings, "answer_prefix")


def _continuation(
    text: str | list[int], stream: Stream, prompt: RequestPrompt, base: LoadedModel, encodings: Encodings, param: str
) -> tuple[int, ...]:
    """Token ids of a continuation, the same for all streams: those behind what the base's `stream` reads."""
    ids = tuple(text) if isinstance(text, list) else continuation(text, stream, base, prompt, encodings)
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
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
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
        logprob_token_ids=tuple(dict.fromkeys(body.logprob_token_ids or ())),
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
        by_member = isinstance(engine, DrawsMembers) and engine.draws_members(job.request)
        return replace(job, kv_bytes=engine.check(job.request), by_member=by_member)
    except UnsupportedRequest as refusal:
        raise _unsupported(str(refusal)) from refusal
    except RequestTooLarge as refusal:
        raise invalid(str(refusal), "max_tokens", "request_too_large") from refusal


def _unsupported(reason: str) -> ApiError:
    return invalid(f"This engine does not run the composition: {reason}", "composition", "unsupported_composition")
