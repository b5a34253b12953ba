"""How large an answer may be: its ids and log-probs are counted before anything is computed.

A whole answer is kept until its end. A token's text takes a few bytes of it, a log-prob with its token up to 250: 147
bytes of request (64 choices, 20 log-probs, traces of 20) have asked for an answer of 105 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from motet.engines.base import GenerationRequest
from motet.server.http.errors import ApiError, invalid
from motet.server.query import Display, Query, ScoreQuery
from motet.server.shapes.requests import MAX_NUMBERS

CODE = "answer_too_large"


def fit_answer(
    query: Query, requests: Sequence[GenerationRequest], *, is_held: bool = False
) -> list[GenerationRequest]:
    """The requests; where the client did not say how long its answers are, they end where a whole answer is full.
    `is_held`: answers are kept until their end even where they are streamed.

    Raises:
        ApiError: 400 with the numbers, more than `MAX_NUMBERS` of the prompts, or of an answer that is not streamed.
    """
    prompts = sum(_of_prompt(query, request) for request in requests)
    if prompts > MAX_NUMBERS:
        raise _too_large(prompts, "of prompts", "ask for fewer log-probs of them, or send fewer or shorter prompts")
    per_token = [request.n * _of_token(query.display, request) for request in requests]
    tokens = [_begun(request) + request.sampling.max_tokens for request in requests]
    asked = prompts + sum(count * each for count, each in zip(tokens, per_token, strict=True))
    if (query.fields.stream and not is_held) or asked <= MAX_NUMBERS:
        return list(requests)
    most = (MAX_NUMBERS - prompts) // sum(per_token)
    if query.max_tokens is not None or most < max(map(_begun, requests)) + max(1, query.display.min_tokens):
        instead = FEWER if is_held else f"send 'stream': true, or {FEWER}"
        raise _too_large(asked, f"({query.num_choices} choices × up to {max(tokens)} tokens)", instead)
    return [_shortened(request, most - _begun(request)) for request in requests]


FEWER = "ask for fewer or shorter choices, log-probs, or a trace with less in it"


def check_scores(query: ScoreQuery, requests: Sequence[GenerationRequest]) -> None:
    """Raises ApiError: 400 with the numbers, scores of more than `MAX_NUMBERS`."""
    each = 1 if query.trace is None else 1 + _of_trace(query.trace, requests[0], voiced=query.trace_members)
    scored = sum(len(request.forced) for request in requests)
    told = scored * each + (0 if query.trace is None else _pondered(requests[0]))
    if told > MAX_NUMBERS:
        what = f"({len(requests)} continuations, {scored} tokens)"
        raise _too_large(told, what, "send fewer continuations, or ask for a trace with less in it")


def _of_token(show: Display, request: GenerationRequest) -> int:
    logprobs = 0 if show.logprobs is None else 1 + show.logprobs
    return logprobs + _of_trace(show.trace, request, voiced=show.trace_members) + show.token_ids


def _of_trace(top: int | None, request: GenerationRequest, *, voiced: bool) -> int:
    """`voiced`: with each member's rank, push, and log-probs of the alternatives."""
    if top is None:
        return 0
    streams = len(request.plan.streams)
    return 1 + streams + 2 * top + (2 * streams + 2 * top * (2 + streams) if voiced else 0)


def _begun(request: GenerationRequest) -> int:
    """Tokens that the answer begins with: they are reported like drawn ones."""
    return len(request.forced) - request.num_prompt_forced


def _of_prompt(query: Query, request: GenerationRequest) -> int:
    """Chat completions have the prompt's once, completions in every choice."""
    show, forced = query.display, request.num_prompt_forced
    scored = 0 if show.prompt_logprobs is None else 1 + show.prompt_logprobs
    echoed = _of_token(replace(show, token_ids=False), request) if show.echo else 0
    listed = show.token_ids + (show.echo and show.logprobs is None)  # an echo without log-probs: a text in every choice
    read = len(request.contexts[0]) + forced
    choices = 1 if query.form == "chat" else request.n
    return (forced * (scored + echoed) + read * listed) * choices + (0 if show.trace is None else _pondered(request))


def _pondered(request: GenerationRequest) -> int:
    """Key tokens are listed with the trace: no more of them than their streams read."""
    streams = zip(request.plan.streams, request.contexts, strict=True)
    return sum(len(ids) for stream, ids in streams if stream.prompt is not None and stream.prompt.pondered is not None)


def _shortened(request: GenerationRequest, most: int) -> GenerationRequest:
    sampling = request.sampling
    return replace(request, sampling=replace(sampling, max_tokens=min(sampling.max_tokens, most)))


def _too_large(count: int, what: str, instead: str) -> ApiError:
    held = f"The answer may hold {count:,} ids, log-probs and echoed tokens {what}"
    message = f"{held}, at most {MAX_NUMBERS:,} are allowed: {instead}."
    return invalid(message, code=CODE)
