"""Request fields → `SamplingParams` and `Display`: what the types of a schema cannot say is checked here."""

from __future__ import annotations

from collections.abc import Mapping

from motet.engines.base import Grammar, SamplingParams
from motet.operator.registry import LoadedModel
from motet.server.errors import invalid
from motet.server.jobs import Display
from motet.server.prompts import check_tokens
from motet.server.schemas import MAX_STOPS, SamplingFields, TraceOptions

MAX_BAD_WORDS = 1024
COLDEST = 1e-6
NO_SEED = -1  # as in vLLM and llama.cpp: interfaces that always send a seed say by it that they want none


def display(body: SamplingFields, *, logprobs: int | None, echo: bool = False, max_stops: int = MAX_STOPS) -> Display:
    """Raises ApiError (400): too many stop strings, prompt log-probs in a stream."""
    if len(body.stops) > max_stops:
        raise invalid(f"'stop' has {len(body.stops)} strings, at most {max_stops} are allowed.", "stop")
    if body.stream and body.prompt_logprobs is not None:
        raise invalid("'prompt_logprobs' cannot be streamed.", "prompt_logprobs", "unsupported_parameter")
    return Display(
        stops=tuple(body.stops),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        min_tokens=body.min_tokens or 0,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        echo=echo,
        trace=trace_top(body.trace),
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def trace_top(trace: bool | TraceOptions | None) -> int | None:
    """How many alternatives a trace holds per token; None: no trace."""
    return trace.top if isinstance(trace, TraceOptions) else 0 if trace else None


def sampling(
    body: SamplingFields, shown: Display, member: LoadedModel, max_tokens: int, grammar: Grammar | None = None
) -> SamplingParams:
    """The sampling parameters over the vocabulary of the base `member`.

    Raises:
        ApiError: 400, ids that the vocabulary does not have, more minimum than maximum tokens.
    """
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
        grammar=grammar,
        bad_words=_bad_words(body.bad_words or [], member),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        top_logprobs=max(shown.logprobs or 0, shown.prompt_logprobs or 0),
        trace_top=shown.trace,
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
    if len(words) > MAX_BAD_WORDS:
        raise invalid(f"'bad_words' has {len(words)} words, at most {MAX_BAD_WORDS} are allowed.", "bad_words")
    spellings = [spelling for word in words for spelling in (word, f" {word.lstrip()}")]
    tokenized = (tuple(member.tokenizer.encode(spelling)) for spelling in spellings)
    sayable = (tokens for tokens in tokenized if all(token < member.info.vocab_size for token in tokens))
    return tuple(dict.fromkeys(tokens for tokens in sayable if tokens))
