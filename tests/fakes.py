"""Stand-ins that tests share: an engine with toy distributions, and a byte-level tokenizer."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from motet.composers.confidence import Confidence
from motet.composers.plan import Plan
from motet.composers.vocabulary import read_vocabulary
from motet.engines.base import EngineError, EngineStopped, GenerationRequest, RequestTooLarge
from motet.engines.outputs import EngineStats, FinishReason, TokenOutput, TokenTrace
from motet.models.info import ModelInfo
from motet.models.tokenizer import Tokenizer
from motet.operator.loaded import LoadedModel, Template

Floats = NDArray[np.float64]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
KV_BYTES_PER_TOKEN = 64


def byte_tokenizer(*, extra: Sequence[str] = (), chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """One token per byte, then the special tokens; `<|end|>` is BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate([*alphabet, *extra])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>")
    hf.chat_template = chat_template
    return Tokenizer(hf)


@lru_cache(65536)
def toy_logprobs(model: str, last: tuple[int, ...], width: int) -> Floats:
    """The toy distribution (V) of a model behind its last tokens; letters and the space are likely."""
    logits = np.random.default_rng(zlib.crc32(repr((model, last)).encode())).normal(size=width) * 2
    logits[65:91] += 3
    logprobs: Floats = logits - np.log(np.exp(logits).sum())
    return logprobs


@dataclass
class FakeEngine:
    """Linear compositions of toy distributions, greedy at temperature 0, else by a fixed or given seed.

    `scripts`: models that say given tokens and then end. `gate`: no step happens while it is clear. `fail_after`:
    the request fails behind so many outputs. `open`: requests that hold slots.
    """

    infos: dict[str, ModelInfo]
    scripts: dict[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    step_seconds: float = 0.0
    fail_after: int | None = None
    kv_bytes_budget: int = 1 << 20
    open: set[str] = field(default_factory=set[str])
    requests: list[GenerationRequest] = field(default_factory=list[GenerationRequest])
    steps: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self.infos

    @property
    def is_alive(self) -> bool:
        return not self.closed

    def supports(self, plan: Plan) -> str | None:
        return "masks are not faked" if any(mask.kind == "nucleus" for mask in plan.masks) else None

    def check(self, request: GenerationRequest) -> int:
        tokens = sum(len(ids) + len(request.forced) + request.sampling.max_tokens for ids in request.contexts)
        nbytes = tokens * KV_BYTES_PER_TOKEN
        if nbytes > self.kv_bytes_budget:
            raise RequestTooLarge(f"{tokens} tokens need {nbytes} bytes, the budget is {self.kv_bytes_budget}")
        return nbytes

    def generate(self, request: GenerationRequest) -> FakeGeneration:
        self.open.add(request.request_id)
        self.requests.append(request)
        return FakeGeneration(self, request)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.open),
            kv_bytes_budget=self.kv_bytes_budget,
            steps=self.steps,
            forward_seconds=dict.fromkeys(self.infos, 0.5),
            accepted_at=(0,) * 4,
        )

    async def close(self) -> None:
        self.closed = True
        self.gate.set()


class FakeGeneration:
    def __init__(self, engine: FakeEngine, request: GenerationRequest) -> None:
        self.cached_tokens = 2
        self.queued_seconds = 0.25
        self._engine = engine
        self._request = request
        self._stopped: set[int] = set()
        self._outputs = self._run()

    def __aiter__(self) -> AsyncIterator[TokenOutput]:
        return self

    async def __anext__(self) -> TokenOutput:
        return await anext(self._outputs)

    def stop_choice(self, choice: int) -> None:
        self._stopped.add(choice)

    async def aclose(self) -> None:
        self._engine.open.discard(self._request.request_id)

    async def _run(self) -> AsyncIterator[TokenOutput]:
        choices = [FakeChoice(self._engine, self._request, index) for index in range(self._request.n)]
        given = 0
        while unfinished := [c for c in choices if not c.finished and c.index not in self._stopped]:
            for choice in unfinished:
                await self._step(given)
                if choice.index not in self._stopped:
                    given += 1
                    yield choice.next()
        await self.aclose()

    async def _step(self, given: int) -> None:
        await asyncio.sleep(self._engine.step_seconds)
        await self._engine.gate.wait()
        self._engine.steps += 1
        if self._engine.closed:
            raise EngineStopped("the engine was stopped")
        if self._engine.fail_after is not None and given >= self._engine.fail_after:
            raise EngineError("member 'large' failed in a step")


class FakeChoice:
    def __init__(self, engine: FakeEngine, request: GenerationRequest, index: int) -> None:
        self.index = index
        self.finished = False
        self._engine = engine
        self._request = request
        self._new: list[int] = []
        grammar = request.sampling.grammar
        self._matcher = None if grammar is None else grammar.start(self._eos())
        self._random = np.random.default_rng(((request.sampling.seed or 0) % 2**32, index))

    def next(self) -> TokenOutput:
        members = [self._member(k) for k in range(len(self._request.contexts))]
        composed = self._composed(members)
        position, forced = len(self._new), self._request.forced
        token = forced[position] if position < len(forced) else self._draw(composed)
        self._new.append(token)
        finish = self._finish(token)
        self.finished = finish is not None
        sampling = self._request.sampling
        named = [(token, float(composed[token])) for token in sampling.logprob_token_ids]
        top = tuple(sorted(named, key=lambda pair: -pair[1])) or _top(composed, sampling.top_logprobs)
        trace = self._trace(members, composed, token)
        is_forced, sure = position < len(forced), _confidence(composed, sampling.confidence)
        return TokenOutput(self.index, token, float(composed[token]), is_forced, top, trace, finish, sure)

    def _member(self, k: int) -> Floats:
        stream = self._request.plan.streams[k]
        width = self._engine.infos[stream.model].vocab_size
        if stream.model in self._engine.scripts:
            return self._scripted(self._engine.scripts[stream.model], width)
        return toy_logprobs(stream.model, (*self._request.contexts[k], *self._new)[-3:], width)

    def _scripted(self, script: Sequence[int], width: int) -> Floats:
        said = len(self._new) - len(self._request.forced)
        logprobs = np.full(width, -30.0)
        logprobs[script[said] if 0 <= said < len(script) else self._eos()[0]] = 0.0
        return logprobs

    def _composed(self, members: Sequence[Floats]) -> Floats:
        weights = [stream.weight for stream in self._request.plan.streams]
        total: Floats = np.sum([w * m for w, m in zip(weights, members, strict=True)], axis=0)
        composed: Floats = total - np.log(np.exp(total - total.max()).sum()) - total.max()
        return composed

    def _draw(self, composed: Floats) -> int:
        sampling = self._request.sampling
        scores = composed.copy()
        for token, bias in sampling.logit_bias:
            scores[token] += bias
        if len(self._new) - len(self._request.forced) < sampling.min_tokens:
            scores[list(self._eos())] = -np.inf
        if sampling.allowed_token_ids is not None:
            others = [i for i in range(len(scores)) if i not in sampling.allowed_token_ids]
            scores[others] = -np.inf
        if self._matcher is not None:
            bits = np.frombuffer(self._matcher.allowed(self._new[len(self._request.forced) :]), dtype=np.uint8)
            scores[np.unpackbits(bits, bitorder="little")[: len(scores)] == 0] = -np.inf
        if sampling.temperature == 0:
            return int(scores.argmax())
        noise = self._random.gumbel(size=len(scores))
        return int((scores / sampling.temperature + noise).argmax())

    def _eos(self) -> tuple[int, ...]:
        return self._engine.infos[self._request.plan.streams[0].model].eos_token_ids

    def _finish(self, token: int) -> FinishReason | None:
        sampling, count = self._request.sampling, len(self._new) - len(self._request.forced)
        stops = sampling.stop_token_ids + (() if sampling.ignore_eos else self._eos())
        if count > 0 and token in stops:
            return "stop"
        return "length" if count >= sampling.max_tokens else None

    def _trace(self, members: Sequence[Floats], composed: Floats, token: int) -> TokenTrace | None:
        top = self._request.sampling.trace_top
        if top is None:
            return None
        base = members[0]
        return TokenTrace(
            member_logprobs=tuple(float(member[token]) for member in members),
            kl=float(np.sum(np.exp(composed) * (composed - base))),
            base_rank=int((base > base[token]).sum()),
            argmax_moved=bool(base.argmax() != composed.argmax()),
            base_top=_top(base, top),
            composed_top=_top(composed, top),
            layers=tuple(own.layers[-1] for own in self._request.plan.exits),
        )


def _confidence(logprobs: Floats, measure: Confidence | None) -> float | None:
    second, first = np.sort(np.exp(logprobs))[-2:]
    match measure:
        case None:
            return None
        case "max_prob":
            return float(first)
        case "margin":
            return float(first - second)
        case "entropy":
            return float(-np.sum(np.exp(logprobs) * logprobs))


def _top(logprobs: Floats, count: int) -> tuple[tuple[int, float], ...]:
    best = np.argsort(-logprobs, kind="stable")[:count]
    return tuple((int(token), float(logprobs[token])) for token in best)


def fake_info(name: str, tokenizer: Tokenizer, max_model_len: int = 256) -> ModelInfo:
    return ModelInfo(
        name=name,
        vocab_size=tokenizer.size,
        max_model_len=max_model_len,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        num_parameters=1000,
        dtype="float32",
        device="cpu",
        eos_token_ids=(tokenizer.backend.token_to_id("<|end|>") or 0,),
        num_layers=12,
    )


def fake_member(
    name: str, tokenizer: Tokenizer, template: Template = "plain", *, max_model_len: int = 256
) -> LoadedModel:
    info = fake_info(name, tokenizer, max_model_len)
    return LoadedModel(info, tokenizer, read_vocabulary(tokenizer.hf, info.vocab_size), template, name)
