"""Tiny members, loaded once, and the straightforward Hugging Face loop that the engine must agree with."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.composers.exits import Exit
from motet.composers.plan import Plan, Stream, single
from motet.composers.rows import reference_logprobs
from motet.composers.rules import AdaptersRule, DiscriminatorRule, RoutedRule
from motet.composers.timeline import HeadReading, Timeline, adapted
from motet.engines.torch import EngineSettings, Member, TorchEngine, choice, load_member
from motet.models.heads import GateHead, LinearHead, ReadingHead, RouterHead, ScaleHead, Seen, SimilarityHead
from motet.models.info import HeadKind
from tests.composers.test_laws import premature_layer
from tests.tiny import EOS, save_all

ROUNDING = 1e-5  # of a logit of the tiny members in float32


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("tiny"))


def chosen_layer(behind: list[torch.Tensor], own: Exit) -> int:
    """DoLa's choice by the logits (1, V) behind all layers."""
    *_, final = logprobs = [logits[0].log_softmax(-1).numpy() for logits in behind]
    return premature_layer(final, {layer: logprobs[layer] for layer in own.layers}, own.select)


def varied(head: LinearHead) -> LinearHead:
    """With random weights, so that what it says lies all over its range."""
    torch.nn.init.normal_(head.linear.weight, std=0.5, generator=torch.Generator().manual_seed(7))
    return head.requires_grad_(False)


def drawn(head: RouterHead) -> RouterHead:
    """With random weights and biases, in all of its parts."""
    generator = torch.Generator().manual_seed(11)
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return head.requires_grad_(False)


def placed(head: SimilarityHead) -> SimilarityHead:
    """Centroids in random directions, and standards of which no two are alike."""
    count = len(head.clusters)
    torch.nn.init.normal_(head.centroids, generator=torch.Generator().manual_seed(13))
    head.mean += torch.linspace(-0.1, 0.1, count)
    head.deviation *= torch.linspace(0.08, 0.2, count)
    return head.requires_grad_(False)


HEADS: dict[str, tuple[HeadKind, Callable[[int], ReadingHead]]] = {
    "llama": ("gate", lambda hidden_size: varied(GateHead(hidden_size))),
    "gemma": ("gate", lambda hidden_size: varied(GateHead(hidden_size))),
    "mistral": ("temperature", lambda hidden_size: varied(ScaleHead(hidden_size, 0.4, 2.5))),
    "llama-b": ("router", lambda hidden_size: drawn(RouterHead(hidden_size, 20, 16, 2, 0.3))),
    "gpt2": ("router", lambda hidden_size: drawn(RouterHead(hidden_size, 200, 16, 1, 0.7))),
    "llama-c": ("similarity", lambda hidden_size: placed(SimilarityHead(hidden_size, ["one", "two", "three"]))),
    "qwen": ("strength", lambda hidden_size: varied(ScaleHead(hidden_size, 0.1, 2.0))),
}


@pytest.fixture(scope="session")
def loaded(paths: Mapping[str, Path]) -> dict[str, Member]:
    return {
        name: load_member(name, str(path), dtype=torch.float32, head=HEADS.get(name)) for name, path in paths.items()
    }


@pytest.fixture
def members(loaded: dict[str, Member]) -> dict[str, Member]:
    """The same weights for all tests, without the prefixes that another test left behind."""
    for member in loaded.values():
        member.cache.clear()
    return loaded


@pytest.fixture(scope="session")
def twofold_loaded(paths: Mapping[str, Path]) -> dict[str, Member]:
    return {
        name: load_member(name, str(path), dtype=torch.float32, head=HEADS.get(name), draft="int4")
        for name, path in paths.items()
    }


@pytest.fixture
def twofold(twofold_loaded: dict[str, Member]) -> dict[str, Member]:
    """The same members, which guess with 4 bits, and where a width has no 4-bit form with 8."""
    for member in twofold_loaded.values():
        member.cache.clear()
    return twofold_loaded


@pytest.fixture(params=["own weights", "fewer bits"])
def guessers(
    request: pytest.FixtureRequest, members: Mapping[str, Member], twofold: Mapping[str, Member]
) -> Mapping[str, Member]:
    """Members by what they guess with."""
    return members if request.param == "own weights" else twofold


@dataclass(frozen=True)
class PlainLoop:
    """One request, no cache, no batch: every token by whole forwards of unmodified models, composed in float64."""

    models: Mapping[str, PreTrainedModel]

    @torch.no_grad()
    def distribution(
        self, plan: Plan, contexts: tuple[tuple[int, ...], ...], shared: list[int], noise: torch.Generator | None = None
    ) -> torch.Tensor:
        """`noise`: logits differ by what another order of float32 sums could change."""
        logits = [
            self.models[stream.model](torch.tensor([[*context, *shared]]), use_cache=False).logits[0, -1:].double()
            for stream, context in zip(plan.readers, contexts, strict=False)
        ]
        behind = self.early(plan.streams[0].model, [*contexts[0], *shared]) if plan.exits else []
        logits += [behind[chosen_layer(behind, own)] for own in plan.exits]
        if noise is not None:
            logits = [row + ROUNDING * torch.randn(row.shape, generator=noise, dtype=row.dtype) for row in logits]
        state = self.state(plan, contexts, shared)
        reading = None if not plan.heads else self.reading(plan, contexts, shared)
        plan = Timeline(plan).at(lambda: shared)
        plan = plan if reading is None else adapted(plan, reading)
        return reference_logprobs(plan, torch.stack(logits), generated=[shared], eos_token_ids=(EOS,), state=state)[0]

    @torch.no_grad()
    def alone(self, stream: Stream, context: tuple[int, ...], shared: list[int]) -> torch.Tensor:
        """Log-probs (V,) of one stream."""
        if stream.exit is None:
            return self.distribution(single(stream.model), (context,), shared)
        behind = self.early(stream.model, [*context, *shared])
        return behind[chosen_layer(behind, stream.exit)][0].log_softmax(-1)

    @torch.no_grad()
    def early(self, model: str, ids: list[int]) -> list[torch.Tensor]:
        """(1, V) logits behind 0, 1, … and all layers, float64: transformers' own hidden states through the final norm,
        the head and Gemma's soft cap."""
        whole = self.models[model]
        stack: Any = getattr(whole, whole.base_model_prefix)
        told: Any = whole(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        norm = stack.ln_f if hasattr(stack, "ln_f") else stack.norm
        *states, last = [state[0, -1:] for state in told.hidden_states]  # the last has been through the norm
        head = cast(Any, whole).get_output_embeddings()
        logits = torch.cat([head(norm(torch.cat(states))), head(last)]).double()
        cap = getattr(whole.config, "final_logit_softcapping", None)
        return [row[None] for row in (cap * (logits / cap).tanh() if cap else logits)]

    @torch.no_grad()
    def state(self, plan: Plan, contexts: tuple[tuple[int, ...], ...], shared: list[int]) -> torch.Tensor | None:
        """The log-probs of all tokens so far under the streams of both classes, summed, and their number: those of the
        prompt that both classes read alike, and those that followed. Of a gate, its share."""
        rule = Timeline(plan).at(lambda: shared).rule
        if isinstance(rule, RoutedRule):
            told = cast("float", self.reading(plan, contexts, shared))
            return torch.tensor([[min(1.0, rule.scale * told), 0, 0]]).double()
        if not isinstance(plan.rule, DiscriminatorRule):
            return None
        _, one, other = contexts
        judged = 0
        while judged < min(len(one), len(other)) - 1 and one[-1 - judged] == other[-1 - judged]:
            judged += 1
        sums: list[float] = []
        for stream, context in list(zip(plan.streams, contexts, strict=True))[1:]:
            ids = [*context, *shared]
            logits = self.models[stream.model](torch.tensor([ids]), use_cache=False).logits[0].double()
            logprobs = (logits / stream.temperature).log_softmax(-1)
            sums.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(len(context) - judged, len(ids))))
        return torch.tensor([[*sums, float(judged + len(shared))]], dtype=torch.float64)

    @torch.no_grad()
    def reading(self, plan: Plan, contexts: tuple[tuple[int, ...], ...], shared: list[int]) -> HeadReading:
        """What the base's head says of the last hidden state that transformers tells, or of the prompt's."""
        base = plan.streams[0].model
        ids = torch.tensor([[*contexts[0], *(() if isinstance(plan.rule, AdaptersRule) else shared)]])
        told = self.models[base](ids, use_cache=False, output_hidden_states=True)
        hidden, logits = told.hidden_states[-1][0, -1:].double(), told.logits[0, -1:].double()
        seen = Seen(hidden, logits, cast(Any, self.models[base]).get_input_embeddings())
        told = HEADS[base][1](hidden.shape[-1]).double().reading(seen)
        return float(told) if told.dim() == 1 else tuple(cast("list[float]", told[0].tolist()))

    def greedy(
        self, plan: Plan, contexts: tuple[tuple[int, ...], ...], forced: tuple[int, ...], max_tokens: int
    ) -> list[tuple[int, float]]:
        """(token, composed log-prob) of the forced tokens and of `max_tokens` greedy ones."""
        out: list[tuple[int, float]] = []
        shared: list[int] = []
        for position in range(len(forced) + max_tokens):
            composed = self.distribution(plan, contexts, shared)
            token = forced[position] if position < len(forced) else int(composed.argmax())
            out.append((token, float(composed[token])))
            shared.append(token)
        return out


@pytest.fixture(scope="session")
def plain_loop(paths: Mapping[str, Path]) -> PlainLoop:
    return PlainLoop(
        {
            name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
            for name, path in paths.items()
        }
    )


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers without a seed draw the same in every run of a test: each by its number."""
    counter = itertools.count()

    def numbered(seed: str | None) -> random.Random:
        return random.Random(next(counter) if seed is None else seed)

    monkeypatch.setattr(choice, "random", SimpleNamespace(Random=numbered))


@pytest.fixture
async def engine(members: Mapping[str, Member]) -> AsyncIterator[TorchEngine]:
    """Small chunks, so that every prompt is cut and mixed with decoding rows."""
    engine = TorchEngine(members, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    yield engine
    await engine.close()
