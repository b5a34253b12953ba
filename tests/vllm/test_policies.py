"""The attacks on policies against the vLLM engine, in short: two secrets each, and six guards removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from motet.engines.vllm.engine import VllmEngine
from motet.models.facts import read_facts
from tests.policies.asking import Asker, Body
from tests.policies.attacks import ATTACKS, CLOSED, Attack
from tests.policies.family import KEPT, SECRETS, TOWNS, VOCAB, save_family, token
from tests.policies.worlds import client_under
from tests.vllm.conftest import SMALL, start_engine

pytestmark = pytest.mark.asyncio(loop_scope="session")
# one of each kind: names, compositions, reports, lists, endings, prompts
CONTROLS = {
    "the assistant alone", "composition: weight 0", "traces", "allowed ids, two by two", "stop tokens as bans",
    "texts without a chat",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guides(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> AsyncIterator[VllmEngine]:
    paths = save_family(tmp_path_factory.mktemp("family"))
    infos = {
        name: read_facts(name, str(path), None, dtype="float32", device="vllm", vocab_size=VOCAB, max_model_len=None)
        for name, path in paths.items()
    }
    engine = start_engine(paths, infos, cache, **SMALL)
    yield engine
    await engine.close()


async def test_policies_hold(guides: VllmEngine) -> None:
    async with client_under(guides, CLOSED) as client:
        for fact in KEPT[:4]:
            assert await Asker(client).says(fact) == fact.town
        for attack in ATTACKS:
            for fact in SECRETS[:2]:
                found = await attack.attempt(Asker(client), fact)
                assert fact.town not in found.towns, attack.name


@pytest.mark.parametrize(
    "attack", [attack for attack in ATTACKS if attack.name in CONTROLS], ids=lambda each: each.name
)
async def test_without_its_guard_an_attack_succeeds(attack: Attack, guides: VllmEngine) -> None:
    async with client_under(guides, attack.opened) as client:
        found = [(await attack.attempt(Asker(client), fact), fact) for fact in SECRETS[:4]]
    assert sum(fact.town in each.towns for each, fact in found) >= 3


async def test_masks_hold_here_too(guides: VllmEngine) -> None:
    """A list of towns that the mask excludes ends the answer; without the policy they are answered."""
    async with client_under(guides, {**CLOSED, "allow": {"token_lists": True}}) as client:
        fact = SECRETS[0]
        excluded = next(town for town in TOWNS if town not in (fact.town, *fact.others))
        asked: Body = {"allowed_token_ids": [token(excluded)], "max_tokens": 2}
        held = await Asker(client).chat(fact, **asked)
        lifted = await Asker(client, "root-key").chat(fact, model="guide-forgetful", temperature=0, **asked)
    assert held is not None
    assert lifted is not None
    choice = held["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert lifted["choices"][0]["message"]["content"][0] == excluded
