"""How a request's tokens are drawn, over the vocabulary of its base."""

from __future__ import annotations

from collections.abc import Mapping

from motet.engines.base import SamplingParams
from motet.operator.loaded import LoadedModel
from motet.server.http.errors import invalid
from motet.server.prompts import check_tokens
from motet.server.query import Query

COLDEST = 1e-6  # a temperature below it is greedy
NO_SEED = -1  # as in vLLM and llama.cpp: interfaces that always send a seed say by it that they want none


def sampling(query: Query, member: LoadedModel, max_tokens: int) -> SamplingParams:
    """The sampling parameters over the vocabulary of the base `member`.

    Raises:
        ApiError: 400, ids that the vocabulary does not have, more minimum than maximum tokens.
    """
    body, shown = query.fields, query.display
    if (body.min_tokens or 0) > max_tokens:
        raise invalid(f"'min_tokens' {body.min_tokens} is more than 'max_tokens' {max_tokens}.", "min_tokens")
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        if ids := getattr(body, name):
            check_tokens(ids, member, name)
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
        logit_bias=_bias(body.logit_bias, member) if body.logit_bias else (),
        allowed_token_ids=allowed,
        bad_words=_bad_words(body.bad_words, member) if body.bad_words else (),
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
