"""A quantised model beside others that are not: a large base is kept small, its experts whole."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch

from motet.composers.plan import single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, TorchEngine, load_member
from motet.models.facts import read_facts
from tests.vllm.conftest import start_engine
from tests.vllm.models import VOCAB
from tests.vllm.quantised import save_int4
from tests.vllm.requests import answers, request_for, tokens

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
NAMES = ("int4", "llama-b", "llama-c")
TOLERANCE = 0.1  # float16
CPU = Path("/proc/cpuinfo")
HAS_KERNEL = not CPU.is_file() or "avx512f" in CPU.read_text()


@pytest.mark.skipif(not HAS_KERNEL, reason="vLLM's build for processors without AVX-512 has no int4 product")
async def test_int4_beside_whole_models(paths: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    """Its numbers are those of the unpacked weights, and not those of the weights before they were rounded."""
    packed, plain = save_int4(paths["llama"], tmp_path)
    own = {**paths, "int4": packed}
    infos = {
        name: read_facts(
            name, str(own[name]), None, dtype="float16", device="vllm", vocab_size=VOCAB, max_model_len=None
        )
        for name in NAMES
    }
    weights = {**paths, "int4": plain}
    embedded = TorchEngine(
        {name: load_member(name, str(weights[name]), dtype=torch.float16, vocab_size=VOCAB) for name in weights},
        EngineSettings(),
    )
    rng = random.Random(0)
    context, text = tokens(rng, 70), tokens(rng, 40)
    proxy = {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"}
    plans = [*map(single, NAMES), build_plan(parse_composition(proxy), "int4", known=NAMES, token_id=lambda _: None)]
    engine = await asyncio.to_thread(start_engine, own, infos, cache, enforce_eager=True)
    try:
        ours, theirs = [
            await answers(which, [request_for(plan, rng, context=context, forced=text, max_tokens=0) for plan in plans])
            for which in (engine, embedded)
        ]
        [before] = await answers(
            embedded, [request_for(single("llama"), rng, context=context, forced=text, max_tokens=0)]
        )
    finally:
        await engine.close()
        await embedded.close()
    assert all(apart(one, other) <= TOLERANCE for one, other in zip(ours, theirs, strict=True))
    assert apart(ours[0], before) > 3 * TOLERANCE


def apart(ours: list[TokenOutput], theirs: list[TokenOutput]) -> float:
    assert [output.token for output in ours] == [output.token for output in theirs]
    return max(abs(one.logprob - other.logprob) for one, other in zip(ours, theirs, strict=True))
