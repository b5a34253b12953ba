"""The vLLM engine on real checkpoints: its answers are those of transformers, composed by the formula."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from motet.composers.plan import Plan, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import Engine, GenerationRequest, SamplingParams
from motet.engines.outputs import TokenOutput
from motet.operator.file import load
from motet.operator.loading_vllm import load_vllm
from motet.operator.registry import Registry
from motet.server.encodings import Encodings
from motet.server.prompts import read
from motet.server.query import RequestPrompt
from tests.real.checkpoints import (
    PROMPTS,
    TOP,
    Sequence_,
    composed_logprobs,
    folder_of,
    kl,
    plain_logits,
    skip_without,
)
from tests.vllm.requests import answers

pytestmark = pytest.mark.asyncio(loop_scope="session")
PAIR = ("qwen-1.5b", "qwen-0.5b")
REPORTED = 400  # alternatives: more than are compared, so that two roundings of a model share those that are
MAX_TOKENS = 16
GUIDANCE: dict[str, Any] = {"strategy": "guidance", "scale": 1.5, "negative_prompt": "Answer in French."}


@dataclass(frozen=True)
class Case:
    """Models of one engine, the first the base, and what is composed of them."""

    names: tuple[str, ...]
    dtype: str
    compositions: tuple[dict[str, Any], ...]

    def plans(self, chat: bool) -> list[Plan]:
        parsed = [parse_composition(composition) for composition in self.compositions]
        base, known = self.names[0], self.names
        return [
            single(base),
            *(build_plan(p, base, known=known, token_id=lambda text: None, chat=chat) for p in parsed),
        ]


CASES = [  # the 0.5B in bfloat16 is one of the last
    Case(("gemma3-270m",), "float32", (GUIDANCE,)),
    Case(("gemma3-270m",), "bfloat16", ()),
    Case(("qwen-0.5b",), "float32", (GUIDANCE,)),
    Case(PAIR, "float32", ({"strategy": "contrastive", "amateur": "qwen-0.5b"}, GUIDANCE)),
    # without its mask: which tokens lie just inside of it is decided by rounding
    Case(PAIR, "bfloat16", ({"strategy": "contrastive", "amateur": "qwen-0.5b", "alpha": 1e-9}, GUIDANCE)),
]


def served(case: Case, folder: Path) -> tuple[Engine, Registry]:
    """By an operator's file, as `motet serve --engine vllm` does."""
    lines = [f"  {name}: {{path: {folder_of(name)}}}" for name in case.names]
    options = f"kind: vllm, dtype: {case.dtype}, max_model_len: 512, max_running: 8, kv_cache_gib: 0.5"
    file = folder / "models.yaml"
    file.write_text("\n".join(["models:", *lines, f"engine: {{{options}, engine_args: {{enforce_eager: true}}}}"]))
    return load_vllm(load(file), print)


def requests_of(case: Case, registry: Registry) -> list[GenerationRequest]:
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, top_logprobs=REPORTED)
    chat = registry.members[case.names[0]].tokenizer.has_chat_template
    asked = [
        RequestPrompt(messages=({"role": "user", "content": text},)) if chat else RequestPrompt(text=text)
        for text in PROMPTS
    ]
    return [
        GenerationRequest(f"{i}-{k}", plan, read(plan, prompt, registry.members, Encodings()).contexts, params)
        for i, plan in enumerate(case.plans(chat))
        for k, prompt in enumerate(asked)
    ]


def named_ends(name: str) -> set[int]:
    """The ids that the checkpoint's own files name."""
    folder = folder_of(name)
    assert folder is not None
    found: set[int] = set()
    for file in ("config.json", "generation_config.json"):
        ids: int | list[int] = json.loads((folder / file).read_text())["eos_token_id"]
        found.update(ids if isinstance(ids, list) else [ids])
    token = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return found | {entry["id"] for entry in added if entry["content"] == token}


async def check_ends(case: Case, engine: Engine, registry: Registry) -> None:
    """Each of the tokens that end an answer ends it, whichever of the checkpoint's files names it."""
    member = registry.members[case.names[0]]
    ends = member.info.eos_token_ids
    assert set(ends) == named_ends(case.names[0])
    plan = single(case.names[0])
    for token in ends:
        params = SamplingParams(max_tokens=4, temperature=0.0, logit_bias=((token, 1000.0),))
        (outputs,) = await answers(engine, [GenerationRequest(f"end-{token}", plan, ((1, 2, 3),), params)])
        assert [(output.token, output.finish) for output in outputs] == [(token, "stop")]


def transformers_logits(
    requests: Sequence[GenerationRequest], found: Sequence[tuple[int, ...]], dtype: torch.dtype, vocab_size: int
) -> dict[tuple[str, Sequence_], Tensor]:
    """Of every (model, context and answer) among the requests; one model in memory at a time."""
    wanted: dict[str, dict[Sequence_, None]] = {}
    for request, answer in zip(requests, found, strict=True):
        for stream, context in zip(request.plan.streams, request.contexts, strict=True):
            wanted.setdefault(stream.model, {})[context, answer] = None
    return {
        (name, sequence): logits
        for name, sequences in wanted.items()
        for sequence, logits in zip(sequences, plain_logits(name, dtype, list(sequences), vocab_size), strict=True)
    }


def check_float32(reference: Tensor, outputs: Sequence[TokenOutput]) -> None:
    """The likeliest token each time, and log-probs to a thousandth."""
    for row, output in zip(reference, outputs, strict=True):
        assert float(row.max() - row[output.token]) <= 1e-3
        assert output.logprob == pytest.approx(float(row[output.token]), abs=1e-3)
        for token, value in output.top[:20]:
            assert value == pytest.approx(float(row[token]), abs=1e-3)  # −inf is −inf


def check_bfloat16(exact: Tensor, plain: Tensor, outputs: Sequence[TokenOutput]) -> tuple[Tensor, Tensor]:
    """(KL of vLLM's, KL of transformers' bfloat16) from the float32 model, per token. Each token is one that the noise
    of bfloat16 could have put first."""
    values, tokens = exact.topk(TOP, -1)
    rows = zip(cast("list[list[int]]", tokens.tolist()), outputs, strict=True)
    # beside a sure token the others are dust: one that is not reported stands no higher than the last that is
    reported = [[dict(output.top).get(token, output.top[-1][1]) for token in row] for row, output in rows]
    own, theirs = kl(values, torch.tensor(reported)), kl(values, plain.gather(-1, tokens))
    noise = (plain - exact).abs()[exact > exact.amax(-1, keepdim=True) - 5].max()
    for row, output in zip(exact, outputs, strict=True):
        assert float(row.max() - row[output.token]) <= 2 * float(noise)
        assert abs(output.logprob - float(row[output.token])) <= 2 * float(noise)
    return own, theirs


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{'+'.join(case.names)}-{case.dtype}")
async def test_answers_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    skip_without(case.names)
    engine, registry = served(case, tmp_path)
    try:
        requests = requests_of(case, registry)
        outputs = await answers(engine, requests)
        await check_ends(case, engine, registry)
    finally:
        await engine.close()
    found = [tuple(output.token for output in part) for part in outputs]
    width = registry.members[case.names[0]].info.vocab_size
    exact = transformers_logits(requests, found, torch.float32, width)
    rounded = transformers_logits(requests, found, torch.bfloat16, width) if case.dtype == "bfloat16" else {}
    compare(requests, found, outputs, exact, rounded)
    if registry.members[case.names[0]].tokenizer.has_chat_template:  # the one-word answer has an end
        assert outputs[len(PROMPTS) - 1][-1].finish == "stop"


def compare(
    requests: Sequence[GenerationRequest],
    found: Sequence[tuple[int, ...]],
    outputs: Sequence[Sequence[TokenOutput]],
    exact: Mapping[tuple[str, Sequence_], Tensor],
    rounded: Mapping[tuple[str, Sequence_], Tensor],
) -> None:
    """In float32 every number; in bfloat16 what it loses against float32, beside what transformers loses."""
    own: list[Tensor] = []
    theirs: list[Tensor] = []
    for request, answer, part in zip(requests, found, outputs, strict=True):
        reference = composed_logprobs(request.plan, request.contexts, answer, exact)
        if not rounded:
            check_float32(reference, part)
            continue
        plain = composed_logprobs(request.plan, request.contexts, answer, rounded)
        for values, new in zip((own, theirs), check_bfloat16(reference, plain, part), strict=True):
            values.append(new)
    if rounded:
        ours, plain_kl = float(torch.cat(own).mean()), float(torch.cat(theirs).mean())
        print(f"mean KL from float32: vLLM {ours:.2e}, transformers {plain_kl:.2e}")
        assert ours <= 1.5 * plain_kl
