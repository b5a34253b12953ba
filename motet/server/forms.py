"""What answers look like: each endpoint's choices, whole and in pieces, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from motet.composers.plan import Plan
from motet.operator.gates import Decision
from motet.server.dialogue.highlights import Highlights
from motet.server.dialogue.parts import delta, said_of
from motet.server.logprobs import chat_logprobs, completion_logprobs, finite, prompt_logprobs
from motet.server.prepare import DIGITS, Job
from motet.server.query import Display
from motet.server.text import TextPiece, prompt_offsets
from motet.server.token_traces import traces
from motet.server.trials import Trial


class Form(Protocol):
    """Chat completion or completion."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def opening(self, index: int, job: Job) -> dict[str, Any] | None:
        """The chunk that opens a choice's stream."""
        ...

    def chunks(self, index: int, piece: TextPiece, job: Job, show: Display) -> Iterable[dict[str, Any]]:
        """What is sent of a piece, which may be nothing yet."""
        ...

    def whole(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]: ...

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        """What stands beside `choices`; takes it out of the `first` choice."""
        ...


def extensions(pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
    """Fields beyond OpenAI's that a choice or chunk has where they were asked for."""
    fields: dict[str, Any] = {}
    outputs = [output for piece in pieces for output in piece.tokens]
    generated = [output for output in outputs if not output.forced]
    if show.token_ids:
        fields["token_ids"] = [output.token for output in generated]
    if show.trace is not None:
        fields["motet"] = {"trace": traces(generated if not show.echo else outputs, job)}
    return fields


def prompt_extensions(pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if show.prompt_logprobs is not None:
        forced = [output for piece in pieces for output in piece.tokens if output.forced]
        fields["prompt_logprobs"] = prompt_logprobs(forced, job, show.prompt_logprobs)
    if show.token_ids:
        fields["prompt_token_ids"] = list(job.prompt_ids)
    return fields


class ChatForm:
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def opening(self, index: int, job: Job) -> dict[str, Any] | None:
        """Where functions may be called the text may be missing."""
        delta = {"role": "assistant", "content": None if job.syntax.calls else ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunks(self, index: int, piece: TextPiece, job: Job, show: Display) -> Iterable[dict[str, Any]]:
        """One for each part; log-probs come with the first, the reason of the end with the last."""
        if not (piece.parts or is_wanted(piece, show)):
            return
        whole = self._choice(index, [piece], job, show)
        first, *others = [delta(part) for part in piece.parts] or [{}]
        begin = {"logprobs": None, "finish_reason": None, "stop_reason": None} if others else {}
        yield whole | begin | {"delta": first, "logprobs": whole["logprobs"]}
        for place, said in enumerate(others, 1):
            end = {"finish_reason": whole["finish_reason"], "stop_reason": whole["stop_reason"]}
            none = {"finish_reason": None}
            yield {"index": index, "delta": said, "logprobs": None} | (end if place == len(others) else none)

    def whole(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
        said = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        if not job.is_plain:
            said |= said_of([part for piece in pieces for part in piece.parts], thinks=job.syntax.tags is not None)
        prompt = prompt_extensions(pieces, job, show) if index == 0 else {}
        return self._choice(index, pieces, job, show) | {"message": said} | prompt

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        names = ("prompt_logprobs", "prompt_token_ids")
        return {name: first.pop(name) for name in names if name in first}

    def _choice(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
        generated = [output for piece in pieces for output in piece.tokens if not output.forced]
        return {
            "index": index,
            "logprobs": None if show.logprobs is None else chat_logprobs(generated, job, show, show.logprobs),
            "finish_reason": self._finish(pieces[-1]) if pieces else None,
            "stop_reason": pieces[-1].stop_reason if pieces else None,
        } | extensions(pieces, job, show)

    def _finish(self, last: TextPiece) -> str | None:
        return "tool_calls" if last.finish == "stop" and last.has_called else last.finish


class CompletionForm:
    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def opening(self, index: int, job: Job) -> dict[str, Any] | None:
        return None

    def chunks(self, index: int, piece: TextPiece, job: Job, show: Display) -> Iterable[dict[str, Any]]:
        if piece.text or is_wanted(piece, show):
            yield self._choice(index, [piece], job, show)

    def whole(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
        choice = self._choice(index, pieces, job, show)
        if choice["logprobs"] is not None:  # tokens whose text a stop string has taken stand at the end
            most = len(choice["text"])
            choice["logprobs"]["text_offset"] = [min(offset, most) for offset in choice["logprobs"]["text_offset"]]
        return choice | prompt_extensions(pieces, job, show)

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _choice(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs(pieces, job, show),
            "finish_reason": pieces[-1].finish if pieces else None,
            "stop_reason": pieces[-1].stop_reason if pieces else None,
        } | extensions(pieces, job, show)

    def _logprobs(self, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any] | None:
        if show.logprobs is None:
            return None
        offsets = ((piece, prompt_offsets(job, show) if _is_scored(piece) else piece.offsets) for piece in pieces)
        placed = [pair for piece, begins in offsets for pair in zip(piece.tokens, begins, strict=True)]
        placed = [(output, offset) for output, offset in placed if show.echo or not output.forced]
        first = job.prompt_ids[0] if show.echo and any(piece.prompt for piece in pieces) else None
        return completion_logprobs(placed, job, show, show.logprobs, first=first)


def _is_scored(piece: TextPiece) -> bool:
    return piece.prompt and bool(piece.tokens)


FORMS: Mapping[Literal["chat", "completion"], Form] = {"chat": ChatForm(), "completion": CompletionForm()}


def is_wanted(piece: TextPiece, show: Display) -> bool:
    """Whether a piece without text is sent: for its log-probs, ids or trace, or because it ends the choice."""
    asked = show.logprobs is not None or show.token_ids or show.trace is not None
    return bool(piece.finish or (asked and piece.tokens))


def extension(
    jobs: Sequence[Job],
    *,
    traced: bool = False,
    trials: Sequence[tuple[int, Trial]] = (),
    written: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What was composed, and what it took: KV bytes reserved, prompt tokens that each stream read. Nothing for keys
    whose policy hides it. `traced`: a trace was asked for; `trials`: who answered, by the index of the choice;
    `written`: how many tokens each role wrote, where a head routes."""
    plan, allow = jobs[0].plan, jobs[0].allow
    if allow is not None and not allow.members:
        return {}
    is_alike = all(job.plan == plan for job in jobs)  # but for prompts between which a gate has made a difference
    decisions = {id(job.decision): job.decision for job in jobs if job.decision is not None}
    pondered = {one: job for job in jobs for one in job.pondered.values()}
    anew = {id(trial.anew): trial.anew for _, trial in trials if trial.sure is False}
    ran = [*jobs, *anew.values()]
    return {
        "strategy": plan.strategy if is_alike else "gated",
        **({"drawn_by_member": True} if all(job.by_member for job in jobs) else {}),
        "weight_sum": plan.weight_sum if is_alike else None,
        "kv_bytes": sum(job.kv_bytes * job.request.n for job in ran),
        "streams": _streams(ran),
        **({"gates": [_decided(decision) for decision in decisions.values()]} if decisions else {}),
        **({"pondered": [_pondered(*pair, traced=traced) for pair in pondered.items()]} if pondered else {}),
        **({"cascade": [_judged(*judged) for judged in trials]} if trials else {}),
        **({"routed": _routed(plan, written)} if written else {}),
    }


def _routed(plan: Plan, written: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every stream with the tokens that it wrote, the base first."""
    return [
        {"role": stream.role, "model": stream.model, "tokens": written.get(stream.role, 0)} for stream in plan.streams
    ]


def _streams(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The streams of all plans, each with the tokens that were read in its place and role."""
    read: dict[tuple[int, str, str, float], int] = {}
    for job in jobs:
        for k, (stream, context) in enumerate(zip(job.plan.streams, job.request.contexts, strict=True)):
            key = k, stream.role, stream.model, stream.weight
            count = 0 if stream.exit is not None else len(context) + len(job.request.forced)
            read[key] = read.get(key, 0) + count
    return [
        {"role": role, "model": model, "weight": weight, "prompt_tokens": count}
        for (_, role, model, weight), count in read.items()
    ]


def _decided(decision: Decision) -> dict[str, Any]:
    return {
        "gate": decision.gate,
        "score": decision.score,
        "threshold": decision.threshold,
        "applied": decision.applied,
    }


def _judged(index: int, trial: Trial) -> dict[str, Any]:
    """Who gave one answer. How sure the first was is a log-prob in other words: under a policy it is told where these
    are."""
    answerer, allow = trial.answerer.plan.streams[0], trial.first.allow
    told = {"index": index, "role": answerer.role, "model": answerer.model, "discarded_tokens": trial.num_discarded}
    if trial.confidence is None or (allow is not None and not allow.logprobs):
        return told
    exact = allow is None or allow.exact_logprobs
    sure = trial.confidence if exact else round(trial.confidence, DIGITS)
    return told | {"confidence": sure, "threshold": trial.judge.threshold}


def _pondered(one: Highlights, job: Job, *, traced: bool) -> dict[str, Any]:
    """What was scored, and with a trace its key tokens: under a policy those of the request's own prompt alone, where
    the log-probs of prompts may be read."""
    told: dict[str, Any] = {"model": one.model, "scored_tokens": len(one.ids), "num_tokens": len(one.places)}
    allow = job.allow
    if not traced or (allow is not None and (one.is_own or not (allow.traces and allow.scoring))):
        return told
    digits = None if allow is None or allow.exact_logprobs else DIGITS
    return told | {"tokens": [_key_token(one, place, job, digits) for place in one.places]}


def _key_token(one: Highlights, place: int, job: Job, digits: int | None) -> dict[str, Any]:
    token, logprob = one.ids[place], finite(one.logprobs[place - 1])
    said = logprob if digits is None else round(logprob, digits)
    return {"token": job.tokenizer.label_of(token), "token_id": token, "position": place, "logprob": said}


def usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """`reasoning_tokens` None: nothing was to be thought."""
    thought = {} if reasoning_tokens is None else {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    } | thought
