"""From a query to what the engine is asked: composition → plan → contexts → grammar and sampling → checked job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from motet.composers.confidence import Judge
from motet.composers.plan import Plan, Stream
from motet.composers.rules import EscalationRule, MixtureRule
from motet.composers.spec import CompositionError, from_guidance_fields, parse_composition
from motet.engines.base import Engine, GenerationRequest, RequestTooLarge, UnsupportedRequest
from motet.engines.drafts import OFF
from motet.engines.drawn import DrawsMembers
from motet.engines.outputs import TokenOutput
from motet.models.tokenizer import Tokenizer
from motet.operator.gates import Decision
from motet.operator.loaded import LoadedModel
from motet.operator.policies import Allow
from motet.operator.registry import Registry, UnknownModel
from motet.server.answer_size import fit_answer
from motet.server.continuations import RenderedText, forced, rendered_text
from motet.server.dialogue.answer_form import AnswerForm, form_of, grammar_of, with_thought, with_tools
from motet.server.dialogue.conversation import dialect_of
from motet.server.dialogue.highlights import Highlights
from motet.server.dialogue.parts import Syntax
from motet.server.dialogue.reasoning import Thinking
from motet.server.dialogue.tools import Offer
from motet.server.encodings import Encodings, tokenized
from motet.server.escalation import sides_of
from motet.server.gating import Decisions, decided
from motet.server.guard import check_drawn, check_form, check_messages, check_shown, permitted
from motet.server.http.errors import ApiError, as_api_error, invalid
from motet.server.pondering import Pondered, highlighted
from motet.server.prompts import check_tokens, max_new_tokens, read
from motet.server.query import Query, RequestPrompt, ScoreQuery
from motet.server.sampling import sampling
from motet.server.service import Service
from motet.server.shapes.requests import Target
from motet.server.speculation import wish_of
from motet.server.structured import StructuredFields

DIGITS = 1  # of log-probs under a policy
NO_TOOLS = Offer()
AS_EVER = Thinking()  # nothing is said of the thought


@dataclass(frozen=True)
class Job:
    """One prompt under one plan. `prompt_ids` is the base stream's whole prompt, forced tokens included.

    Attributes:
        num_scored: tokens of the prompt, or of a continuation, that are scored instead of read.
        num_prompt_tokens: of the prompt that the client sent, as the first member has it that reads this one, and all
            of it; the base's own where none does.
        is_plain: whether all that is written is said: nothing is thought, and nothing called.
        computes: whether the engine has anything to do: an echo of one token with no answer needs nothing.
    """

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
    pondered: Pondered = field(default_factory=dict[int, Highlights])
    allow: Allow | None = None  # what the policy of the request's key opens; None: no policy
    escalation: Escalation | None = None  # who answers anew
    # what follows from the others, for whoever writes the answer
    plan: Plan = field(init=False)
    syntax: Syntax = field(init=False)
    num_scored: int = field(init=False)
    num_prompt_tokens: int = field(init=False)
    is_plain: bool = field(init=False)
    computes: bool = field(init=False)

    def __post_init__(self) -> None:
        request, syntax = self.request, self.form.syntax
        num_scored = len(request.forced) - self.num_begun
        whose = next((k for k, stream in enumerate(request.plan.streams) if _reads_all(stream)), 0)
        object.__setattr__(self, "plan", request.plan)
        object.__setattr__(self, "syntax", syntax)
        object.__setattr__(self, "is_plain", syntax.tags is None and syntax.calls is None)
        object.__setattr__(self, "num_scored", num_scored)
        object.__setattr__(self, "num_prompt_tokens", len(request.contexts[whose]) + num_scored)
        object.__setattr__(self, "computes", request.sampling.max_tokens > 0 or bool(request.forced))

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

    def reported(self, output: TokenOutput) -> TokenOutput:
        """What readers under a policy may know of a token: log-probs are rounded."""
        if self.allow is None or self.allow.exact_logprobs:
            return output
        top = tuple((token, round(logprob, DIGITS)) for token, logprob in output.top)
        return replace(output, logprob=round(output.logprob, DIGITS), top=top)


@dataclass(frozen=True)
class Escalation:
    """How an answer is judged, and the job that answers anew where it is not sure."""

    judge: Judge
    job: Job


def _reads_all(stream: Stream) -> bool:
    """Whether a stream reads the request's prompt, and all of it."""
    own = stream.prompt
    return own is None or not (own.is_own or own.last_tokens or own.swaps)


async def prepare(service: Service, query: Query) -> list[Job]:
    """The jobs of a query.

    Raises:
        ApiError, CompositionError, UnknownModel: whatever can be known before anything is computed.
        NotAllowed: the policy of the request's key closes it.
    """
    if service.allow is not None:
        check_shown(query.display, query.n, service.allow)
        check_form(query.form, service.allow)
    jobs = await built(service, query, partial(_jobs, service, query))
    jobs = [job.with_sides([await _with_grammar(side, query, service.registry) for side in job.sides]) for job in jobs]
    if service.allow is not None:
        for side in (side for job in jobs for side in job.sides):
            check_drawn(side.request.sampling, query.display, service.allow)
    return [job.with_sides([checked(side, service.engine) for side in job.sides]) for job in jobs]


Build = Callable[[Decisions, Sequence[Pondered], Encodings], list[Job]]


async def built(service: Service, query: Query | ScoreQuery, build: Build) -> list[Job]:
    """The jobs that `build` makes of what gates have decided and models pondered, not checked yet. Classifying and
    tokenizing take a while and have threads of their own, as compiling has; the engine is asked in the event loop."""
    decisions: Decisions = await decided(service, query) if service.registry.gates else {}
    jobs = await tokenized(partial(build, decisions, ()))
    if any(job.pondered for job in jobs):  # what does not fit as it is gets refused before its second reading is made
        asked = [checked(job, service.engine) for job in jobs]
        highlights = await highlighted(service, query, [job.pondered for job in asked])
        jobs = await tokenized(partial(build, decisions, highlights))
    return jobs


def _jobs(
    service: Service, query: Query, decisions: Decisions, highlights: Sequence[Pondered], encodings: Encodings
) -> list[Job]:
    """`highlights`: what each job's streams ponder; empty: nothing is scored yet."""
    jobs = list(_answering(service, query, decisions, highlights, encodings))
    if not query.tells_tokens:  # an answer of nothing but text is never too large
        return jobs
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
    registry = service.registry
    for i, target in enumerate(query.targets):
        for k, prompt in enumerate(query.prompts):
            decision = decisions.get((i, k))
            plan = _target_plan(query, i, target, registry, decision)
            number = i * len(query.prompts) + k
            own = highlights[number] if highlights else None
            name = f"{query.request_id}-{number}"
            if isinstance(plan.rule, EscalationRule):
                first, base = sides_of(query, plan)
                job = _job(service, query, first, registry.base_of(first), prompt, name, encodings, own)
                anew = _job(service, query, base, registry.base_of(base), prompt, f"{name}-anew", encodings, None)
                job = _escalating(plan.rule, job, anew)
            else:
                job = _job(service, query, plan, registry.base_of(plan), prompt, name, encodings, own)
            yield replace(job, decision=decision)


def _job(
    service: Service,
    query: Query,
    plan: Plan,
    base: LoadedModel,
    asked: RequestPrompt,
    request_id: str,
    encodings: Encodings,
    pondered: Pondered | None,
) -> Job:
    """The job of one prompt under one plan, whose `base` has the tokens that all members have."""
    members = service.registry.members
    prompt = in_dialect(asked, plan, members, query.offer, query.thinking)
    tokens = read(plan, prompt, members, encodings, score_prompt=query.score_prompt, pondered=pondered)
    given = query.fields.answer_prefix
    begun = () if given is None else forced(given, plan.streams[0], prompt, base, encodings, "answer_prefix")
    if service.allow is not None:
        check_messages(prompt, tokens.pondered.values(), plan, members, service.allow)
    if tokens.forced:
        check_tokens(tokens.forced, base, prompt.param)
    whole = replace(tokens, forced=tokens.forced + begun)
    max_tokens = max_new_tokens(whole, members, service.kv_budget, query.max_tokens)
    prompt_ids = tokens.prompt_ids
    params = sampling(query, base, max_tokens)
    if service.allow is not None:
        params = permitted(params, prompt_ids, service.allow)
    is_paced = service.allow is not None and not service.allow.speculation  # a stream's pace shall tell nothing
    wish = query.fields.speculation
    request = GenerationRequest(
        request_id,
        with_thought(plan, prompt, members, base) if plan.schedules else plan,
        tokens.contexts,
        params,
        whole.forced,
        num_prompt_forced=len(tokens.forced),
        n=query.n,
        cache_salt=query.cache_salt,
        speculation=OFF if is_paced else None if wish is None else wish_of(wish, plan),
        by_member=isinstance(plan.rule, MixtureRule) and not is_paced and query.display.logprobs is None,
    )
    text = prompt.text if prompt.truncate is None else None
    says_more = prompt.dialect.tags is not None or query.offer.callable or query.thinking != AS_EVER
    return Job(
        request,
        base.tokenizer,
        prompt_ids,
        text,
        rendered_text(tokens, prompt, base) if query.score_prompt and query.display.echo else None,
        (text or base.tokenizer.decode(prompt_ids)) if query.display.echo else "",
        form_of(prompt, plan, service.registry, query) if prompt.messages is not None and says_more else AnswerForm(),
        len(begun),
        pondered=tokens.pondered,
        allow=service.allow,
    )


def in_dialect(
    prompt: RequestPrompt,
    plan: Plan,
    members: Mapping[str, LoadedModel],
    offer: Offer = NO_TOOLS,
    thinking: Thinking = AS_EVER,
) -> RequestPrompt:
    """Messages in the words of the composition's leading member, with the tools and switches of the request.

    Raises:
        ApiError: 400, tools that it has no words for.
    """
    if prompt.messages is None:
        return prompt
    prompt = replace(prompt, dialect=dialect_of(plan, members))
    if offer.tools:
        prompt = with_tools(prompt, offer)
    if thinking.effort is not None:
        prompt = replace(prompt, variables=thinking.variables(plan, members, prompt.variables))
    return prompt


def _escalating(rule: EscalationRule, first: Job, anew: Job) -> Job:
    """The `first` job, told with what it is judged by."""
    sampling = replace(first.request.sampling, confidence=rule.judge.measure)
    return replace(first, request=replace(first.request, sampling=sampling), escalation=Escalation(rule.judge, anew))


def _keeps_a_form(job: Job, query: Query) -> bool:
    """Whether anything about the answer's form is asked for, by the request or by its thought and its calls."""
    thought = job.form.thought
    is_asked = any(getattr(query.fields, name) is not None for name in StructuredFields.model_fields)
    return is_asked or job.syntax.calls is not None or (thought is not None and thought.budget is not None)


async def _with_grammar(job: Job, query: Query, registry: Registry) -> Job:
    if not _keeps_a_form(job, query):
        return job
    sampling = job.request.sampling
    grammar = await grammar_of(job.form, job.plan, registry, query, sampling.max_tokens)
    if grammar is not None and query.fields.answer_prefix is not None:
        raise invalid("'answer_prefix' excludes structured outputs: a grammar holds for drawn tokens.", "answer_prefix")
    return replace(job, request=replace(job.request, sampling=replace(sampling, grammar=grammar)))


def _target_plan(query: Query, index: int, target: Target, registry: Registry, decision: Decision | None) -> Plan:
    """The target's plan; a refusal of a comparison's candidate says which one."""
    try:
        return plan_of(target, registry, decision, chat=query.form == "chat")
    except (ApiError, CompositionError, UnknownModel) as refusal:
        if query.labels is None:
            raise
        where, error = f"candidates.{index}", as_api_error(refusal)
        param = f"{where}.{error.param}" if error.param else where
        public = error.public and f"{where}: {error.public}"
        message = f"{where}: {error.detail}"
        raise ApiError(error.status_code, message, param=param, code=error.code, public=public) from refusal


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
        by_member = job.request.by_member and isinstance(engine, DrawsMembers) and engine.draws_members(job.request)
        return replace(job, kv_bytes=engine.check(job.request), by_member=by_member)
    except UnsupportedRequest as refusal:
        raise _unsupported(str(refusal)) from refusal
    except RequestTooLarge as refusal:
        raise invalid(str(refusal), "max_tokens", "request_too_large") from refusal


def _unsupported(reason: str) -> ApiError:
    return invalid(f"This engine does not run the composition: {reason}", "composition", "unsupported_composition")
