"""From a query of scores to what the engine is asked: every continuation behind the prompt, forced; nothing is
generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from motet.composers.rules import EscalationRule
from motet.engines.base import GenerationRequest, SamplingParams
from motet.server.answer_size import check_scores
from motet.server.continuations import forced
from motet.server.dialogue.answer_form import with_thought
from motet.server.encodings import Encodings
from motet.server.escalation import sides_of
from motet.server.gating import Decisions
from motet.server.guard import check_drawn, check_messages
from motet.server.pondering import Pondered
from motet.server.prepare import Job, built, checked, in_dialect, plan_of
from motet.server.prompts import max_new_tokens, read
from motet.server.query import ScoreQuery
from motet.server.service import Service
from motet.server.translation import check_scorable


async def prepare_scores(service: Service, query: ScoreQuery) -> list[Job]:
    """The jobs of a query, one for each continuation. Raises as `prepare` does."""
    jobs = await built(service, query, partial(_jobs, service, query))
    if service.allow is not None:
        for job in jobs:
            check_drawn(job.request.sampling, None, service.allow)
    return [checked(job, service.engine) for job in jobs]


def _jobs(
    service: Service, query: ScoreQuery, decisions: Decisions, highlights: Sequence[Pondered], encodings: Encodings
) -> list[Job]:
    """`highlights`: what each job's streams ponder; empty: nothing is scored yet."""
    jobs = list(_scoring(service, query, decisions, highlights, encodings))
    check_scores(query, [job.request for job in jobs])
    return jobs


def _scoring(
    service: Service, query: ScoreQuery, decisions: Decisions, highlights: Sequence[Pondered], encodings: Encodings
) -> Iterator[Job]:
    decision = decisions.get((0, 0))
    plan = plan_of(query.target, service.registry, decision, chat=query.prompt.messages is not None)
    if isinstance(plan.rule, EscalationRule):
        sides_of(query, plan)  # which score nothing
    check_scorable(plan, "composition")
    members, base = service.registry.members, service.registry.base_of(plan)
    asked = in_dialect(query.prompt, plan, members)
    prompt = read(plan, asked, members, encodings, pondered=highlights[0] if highlights else None)
    if service.allow is not None:
        check_messages(asked, prompt.pondered.values(), plan, members, service.allow)
    shows_members = service.allow is None or service.allow.traces
    params = SamplingParams(
        max_tokens=0,
        temperature=0.0,
        top_logprobs=1,
        trace_top=query.trace or 0 if shows_members else query.trace,
        trace_members=query.trace_members,
    )
    for i, text in enumerate(query.continuations):
        ids = forced(text, plan.streams[0], asked, base, encodings, "continuations")
        tokens = replace(prompt, forced=ids)
        max_new_tokens(tokens, members, service.kv_budget, asked=0)
        request = GenerationRequest(
            f"{query.request_id}-{i}",
            with_thought(plan, asked, members, base) if plan.schedules else plan,
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
