"""What answers look like: each endpoint's choices, whole and in pieces, with log-probabilities and traces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from motet.engines.base import TokenOutput, TokenTrace, Voices
from motet.models.tokenizer import Tokenizer
from motet.operator.gates import Decision
from motet.server.dialogue.highlights import Highlights
from motet.server.dialogue.parts import delta, message
from motet.server.prepare import DIGITS, Job
from motet.server.query import Display
from motet.server.text import TextPiece

LOWEST = -9999.0  # JSON has no −inf
MARGINAL_RANK = 3  # Lin et al. 2023 (URIAL): rank 0 unshifted, 1 and 2 marginal, from 3 on shifted


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
        said = message([part for piece in pieces for part in piece.parts], thinks=job.syntax.tags is not None)
        prompt = prompt_extensions(pieces, job, show) if index == 0 else {}
        return self._choice(index, pieces, job, show) | {"message": said} | prompt

    def extras(self, first: dict[str, Any]) -> dict[str, Any]:
        names = ("prompt_logprobs", "prompt_token_ids")
        return {name: first.pop(name) for name in names if name in first}

    def _choice(self, index: int, pieces: Sequence[TextPiece], job: Job, show: Display) -> dict[str, Any]:
        generated = [output for piece in pieces for output in piece.tokens if not output.forced]
        return {
            "index": index,
            "logprobs": chat_logprobs(generated, job, show),
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
        placed = [pair for piece in pieces for pair in zip(piece.tokens, piece.offsets, strict=True)]
        placed = [(output, offset) for output, offset in placed if show.echo or not output.forced]
        first = job.prompt_ids[0] if show.echo and any(piece.prompt for piece in pieces) else None
        return completion_logprobs(placed, job, show, first=first)


FORMS: Mapping[Literal["chat", "completion"], Form] = {"chat": ChatForm(), "completion": CompletionForm()}


def is_wanted(piece: TextPiece, show: Display) -> bool:
    """Whether a piece without text is sent: for its log-probs, ids or trace, or because it ends the choice."""
    asked = show.logprobs is not None or show.token_ids or show.trace is not None
    return bool(piece.finish or (asked and piece.tokens))


def extension(jobs: Sequence[Job], *, traced: bool = False) -> dict[str, Any]:
    """What was composed, and what it took: KV bytes reserved, prompt tokens that each stream read. Nothing for keys
    whose policy hides it. `traced`: a trace was asked for."""
    plan, allow = jobs[0].plan, jobs[0].allow
    if allow is not None and not allow.members:
        return {}
    is_alike = all(job.plan == plan for job in jobs)  # but for prompts between which a gate has made a difference
    decisions = {id(job.decision): job.decision for job in jobs if job.decision is not None}
    pondered = {one: job for job in jobs for one in job.pondered.values()}
    return {
        "strategy": plan.strategy if is_alike else "gated",
        **({"drawn_by_member": True} if all(job.by_member for job in jobs) else {}),
        "weight_sum": plan.weight_sum if is_alike else None,
        "kv_bytes": sum(job.kv_bytes * job.request.n for job in jobs),
        "streams": _streams(jobs),
        **({"gates": [_decided(decision) for decision in decisions.values()]} if decisions else {}),
        **({"pondered": [_pondered(*pair, traced=traced) for pair in pondered.items()]} if pondered else {}),
    }


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


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST or math.isnan(logprob) else LOWEST


def label(token: int, tokenizer: Tokenizer, show: Display) -> str:
    return f"token_id:{token}" if show.tokens_as_ids else tokenizer.label_of(token)


def chat_logprobs(outputs: Iterable[TokenOutput], job: Job, show: Display) -> dict[str, Any] | None:
    """`choices[].logprobs` of a chat completion; None where they were not asked for."""
    if show.logprobs is None:
        return None
    content = [
        _chat_entry(output.token, output.logprob, job, show)
        | {"top_logprobs": [_chat_entry(token, value, job, show) for token, value in output.top[: show.logprobs]]}
        for output in outputs
    ]
    return {"content": content, "refusal": None}


def _chat_entry(token: int, logprob: float, job: Job, show: Display) -> dict[str, Any]:
    text = label(token, job.tokenizer, show)
    return {"token": text, "logprob": finite(logprob), "bytes": list(job.tokenizer.bytes_of(token))}


def top_by_label(output: TokenOutput, job: Job, show: Display, count: int) -> dict[str, float]:
    """Label → log-prob, best first: `count` alternatives and the token itself. Tokens that read alike are told apart
    by id: a harness that asks whether the token is the most likely compares with the largest of these values."""
    pairs = list(output.top[:count])
    if output.token not in [token for token, _ in pairs]:
        pairs.append((output.token, output.logprob))
    named: dict[str, float] = {}
    for token, logprob in pairs:
        text = label(token, job.tokenizer, show)
        named[f"token_id:{token}" if text in named else text] = finite(logprob)
    return named


def completion_logprobs(
    placed: Sequence[tuple[TokenOutput, int]], job: Job, show: Display, *, first: int | None
) -> dict[str, Any] | None:
    """`choices[].logprobs` of a completion, of tokens with the characters of the choice's text before each. `first`:
    the prompt's first token where it is echoed, which nothing predicts."""
    if show.logprobs is None:
        return None
    outputs = [output for output, _ in placed]
    tokens = ([] if first is None else [first]) + [output.token for output in outputs]
    unknown: list[Any] = [] if first is None else [None]
    return {
        "tokens": [label(token, job.tokenizer, show) for token in tokens],
        "token_logprobs": unknown + [finite(output.logprob) for output in outputs],
        "top_logprobs": unknown + [top_by_label(output, job, show, show.logprobs) for output in outputs],
        "text_offset": ([] if first is None else [0]) + [offset for _, offset in placed],
    }


def prompt_logprobs(forced: Sequence[TokenOutput], job: Job, count: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per prompt token id → log-prob; null for the first, which nothing predicts. The
    rank is null for tokens outside of the alternatives asked for."""
    return [None, *(_prompt_entry(output, job, count) for output in forced)]


def _prompt_entry(output: TokenOutput, job: Job, count: int) -> dict[str, Any]:
    ranked: dict[int, tuple[int | None, float]] = {}
    ranked |= {token: (rank, value) for rank, (token, value) in enumerate(output.top, 1)}
    shown = {token: ranked[token] for token, _ in output.top[:count]}
    shown[output.token] = ranked.get(output.token, (None, output.logprob))
    return {
        str(token): {"logprob": finite(value), "rank": rank, "decoded_token": job.tokenizer.label_of(token)}
        for token, (rank, value) in shown.items()
    }


def shift_class(base_rank: int) -> str:
    if base_rank == 0:
        return "unshifted"
    return "marginal" if base_rank < MARGINAL_RANK else "shifted"


def traces(outputs: Iterable[TokenOutput], job: Job) -> list[dict[str, Any]]:
    return [_trace_entry(output, output.trace, job) for output in outputs if output.trace is not None]


def _trace_entry(output: TokenOutput, trace: TokenTrace, job: Job) -> dict[str, Any]:
    return {
        "token": job.tokenizer.label_of(output.token),
        "token_id": output.token,
        "logprob": finite(output.logprob),
        "members": _by_role(trace.member_logprobs, job),
        "kl": min(trace.kl, -LOWEST),
        "base_rank": trace.base_rank,
        "shift": shift_class(trace.base_rank),
        "argmax_moved": trace.argmax_moved,
        **_one_or_all("alpha", trace.alpha),
        **({} if trace.head is None else {"head": trace.head}),
        **_one_or_all("layer", trace.layers),
        "top": {"base": _top(trace.base_top, job), "composed": _top(trace.composed_top, job)},
        **({} if trace.voices is None else _voices(trace.voices, job)),
    }


def _voices(voices: Voices, job: Job) -> dict[str, Any]:
    """What each member says of the token and of its alternatives; `push` is null where the rule is no sum."""
    roles = [stream.role for stream in job.plan.streams]
    return {
        "ranks": dict(zip(roles, voices.ranks, strict=True)),
        "push": dict(zip(roles, voices.pushes, strict=True)) if voices.pushes else None,
        "alternatives": [
            {
                "token": job.tokenizer.label_of(one.token),
                "token_id": one.token,
                "logprob": finite(one.logprob),
                "members": _by_role(one.members, job),
            }
            for one in voices.alternatives
        ],
    }


def _by_role(logprobs: Iterable[float], job: Job) -> dict[str, float]:
    return {stream.role: finite(value) for stream, value in zip(job.plan.streams, logprobs, strict=True)}


def _one_or_all(name: str, values: Sequence[float]) -> dict[str, Any]:
    """One number where there is one pair of experts, or one early exit; a list where there are several."""
    return {} if not values else {name: values[0] if len(values) == 1 else list(values)}


def _top(pairs: Iterable[tuple[int, float]], job: Job) -> list[dict[str, Any]]:
    return [
        {"token": job.tokenizer.label_of(token), "token_id": token, "logprob": finite(value)} for token, value in pairs
    ]
