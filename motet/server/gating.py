"""Which side of a gated composition answers: decided once per prompt, before anything of it is read by a model.

One window of one prompt is classified at a time, in a thread of its own: requests take turns, and a client that leaves
is not computed any further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from anyio import CapacityLimiter, to_thread

from motet.models.classifier import TextTooLong
from motet.operator.gates import Decision, Gate
from motet.operator.loaded import LoadedModel
from motet.server.http.errors import PROMPT_TOO_LONG, ApiError
from motet.server.prompts import check_tokens
from motet.server.query import Query, RequestPrompt, ScoreQuery
from motet.server.service import Service
from motet.server.shapes.requests import Target
from motet.settings import texts_of

CLASSIFYING = CapacityLimiter(1)
Decisions = Mapping[tuple[int, int], Decision]  # (target, prompt) → what its gate said; nothing where there is none


async def decided(service: Service, query: Query | ScoreQuery) -> Decisions:
    """What the gates say of a query's prompts.

    Raises:
        ApiError: 400, a prompt with more windows than its gate reads, or without any token; 500, a classifier whose
            answer is no number.
    """
    decisions: dict[tuple[int, int], Decision] = {}
    if isinstance(query, ScoreQuery):
        targets, prompts, begun = (query.target,), (query.prompt,), None
    else:
        targets, prompts, begun = query.targets, query.prompts, query.fields.answer_prefix
    for i, gate, base in _gates(service, targets):
        for k, prompt in enumerate(prompts):
            text = await to_thread.run_sync(_text, prompt, gate, base, begun, limiter=CLASSIFYING)
            decision = await _decide(gate, text, prompt.param)
            service.metrics.gate_decisions.labels(gate.name, str(decision.applied).lower()).inc()
            decisions[i, k] = decision
    return decisions


def _gates(service: Service, targets: Sequence[Target]) -> Iterator[tuple[int, Gate, LoadedModel]]:
    """Place, gate and base of the targets that have a gate."""
    for i, target in enumerate(targets):
        gate = service.registry.gate_of(target.model)
        written = (target.composition, target.guidance_scale, target.negative_prompt)
        if gate is not None and all(field is None for field in written):  # what is written over it is refused
            yield i, gate, service.registry.member(target.model)


async def _decide(gate: Gate, text: str, param: str) -> Decision:
    most = gate.config.max_windows
    try:
        windows = await to_thread.run_sync(gate.classifier.windows, text, most, limiter=CLASSIFYING)
    except TextTooLong:
        limit = f"is longer than the {most} windows of {gate.classifier.room} tokens that are read of it"
        message = f"The prompt {limit} to decide what answers."
        raise ApiError(400, message, param=param, code="context_length_exceeded", public=PROMPT_TOO_LONG) from None
    if not windows[0]:
        message, public = "The prompt is empty: nothing can be decided by it.", "The prompt is empty."
        raise ApiError(400, message, param=param, code="empty_prompt", public=public)
    scores = [await to_thread.run_sync(gate.classifier.probability, one, limiter=CLASSIFYING) for one in windows]
    if not all(map(math.isfinite, scores)):
        raise ApiError(500, f"The classifier of gate {gate.name!r} answers with no number.", code="gate_failed")
    return Decision(gate.name, max(scores), gate.config.threshold)


def _text(prompt: RequestPrompt, gate: Gate, base: LoadedModel, begun: str | list[int] | None) -> str:
    return "\n".join(_texts(prompt, gate, base, begun))


def _texts(prompt: RequestPrompt, gate: Gate, base: LoadedModel, begun: str | list[int] | None) -> Iterator[str]:
    """What the gate reads: never nothing, as long as the prompt holds any text."""
    messages = prompt.messages or ()
    asked = [turn for turn in messages if turn["role"] == "user"]
    if gate.config.reads == "last_user" and asked:
        yield from _said(asked[-1])
        return
    for turn in messages:
        yield from _said(turn)
    yield from texts_of([*prompt.tools, dict(prompt.variables)])
    if prompt.text is not None:
        yield prompt.text
    for ids, param in ((prompt.tokens, prompt.param), (begun if isinstance(begun, list) else None, "answer_prefix")):
        if ids is not None:
            check_tokens(ids, base, param)
            yield base.tokenizer.decode(ids)
    if isinstance(begun, str):
        yield begun


def _said(turn: Mapping[str, object]) -> Iterator[str]:
    """All texts of a turn: its name, too, which a template may show."""
    return texts_of({key: value for key, value in turn.items() if key != "role"})
