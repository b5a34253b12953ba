"""Log-probabilities as each API writes them: OpenAI's of chats and of completions, vLLM's of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from motet.engines.outputs import TokenOutput
from motet.models.tokenizer import Tokenizer
from motet.server.prepare import Job
from motet.server.query import Display

LOWEST = -9999.0  # JSON has no −inf


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST or math.isnan(logprob) else LOWEST


def label(token: int, tokenizer: Tokenizer, show: Display) -> str:
    return f"token_id:{token}" if show.tokens_as_ids else tokenizer.label_of(token)


def chat_logprobs(outputs: Iterable[TokenOutput], job: Job, show: Display, count: int) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion, with `count` alternatives of each token."""
    content = [
        _chat_entry(output.token, output.logprob, job, show)
        | {"top_logprobs": [_chat_entry(token, value, job, show) for token, value in output.top[:count]]}
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
    placed: Sequence[tuple[TokenOutput, int]], job: Job, show: Display, count: int, *, first: int | None
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion, of tokens with the characters of the choice's text before each, and with
    `count` alternatives. `first`: the prompt's first token where it is echoed, which nothing predicts."""
    outputs = [output for output, _ in placed]
    tokens = ([] if first is None else [first]) + [output.token for output in outputs]
    unknown: list[Any] = [] if first is None else [None]
    return {
        "tokens": [label(token, job.tokenizer, show) for token in tokens],
        "token_logprobs": unknown + [finite(output.logprob) for output in outputs],
        "top_logprobs": unknown + [top_by_label(output, job, show, count) for output in outputs],
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
