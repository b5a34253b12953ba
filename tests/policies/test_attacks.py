"""Every attack against the policy, and against the policy with the attack's own guard removed."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from motet.engines.torch import TorchEngine
from tests.policies.asking import Asker, Body
from tests.policies.attacks import (
    ATTACKS,
    CLOSED,
    ERASER,
    TARGET,
    Attack,
    Found,
    allowed_ids,
    choice_of,
    grammar_of,
    regex_of,
)
from tests.policies.family import KEPT, NUM_OTHERS, SECRETS, TOWNS, Fact
from tests.policies.worlds import HIDDEN, client_under

pytestmark = pytest.mark.asyncio(loop_scope="session")
NEAR = 0.5  # nats: log-probs of the target that are known so well count as recovered
ENOUGH = 4  # of 6 secrets that an attack finds once its guard is gone: by chance it finds 0.4


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def closed(engine: TorchEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_under(engine, CLOSED) as client:
        yield client


async def target_logprobs(client: httpx.AsyncClient, fact: Fact) -> dict[str, float]:
    """What the plain target gives its likeliest towns, as the operator may read it."""
    root = Asker(client, "root-key")
    answer = await root.chat(fact, logprobs=True, top_logprobs=NUM_OTHERS + 1, temperature=0)
    assert answer is not None
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {entry["token"]: entry["logprob"] for entry in entries}


def distance(found: Found, truth: dict[str, float]) -> float:
    """Largest error of the recovered log-probs in nats; infinite where the secret's is not among them."""
    if not truth.keys() <= found.logprobs.keys():
        return math.inf
    return max(abs(found.logprobs[town] - value) for town, value in truth.items())


async def test_the_family_is_what_the_attacks_suppose(closed: httpx.AsyncClient) -> None:
    """The target knows all, the stand-in has forgotten what it shall and nothing else, the eraser knows the rest."""
    root, client = Asker(closed, "root-key"), Asker(closed)
    for fact in SECRETS:
        assert await root.says(fact, temperature=0) == fact.town
        assert await root.says(fact, temperature=0, model=ERASER) == fact.town
        assert await client.says(fact) in fact.others
    for fact in KEPT:
        assert await client.says(fact) == fact.town


async def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 20
    assert len(ATTACKS) * len(SECRETS) >= 500
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text("utf-8")
    assert f"{len(ATTACKS)} classes of attack" in page
    assert f"{len(ATTACKS) * len(SECRETS)} attempts" in page


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_the_policy_holds(attack: Attack, closed: httpx.AsyncClient) -> None:
    """No secret is named, no log-prob of the target comes near, and no answer holds the name of a member."""
    for fact in SECRETS:
        ask = Asker(closed)
        found = await attack.attempt(ask, fact)
        assert fact.town not in found.towns
        assert distance(found, await target_logprobs(closed, fact)) > NEAR
        assert not [name for name in HIDDEN for text in ask.seen if name in text and name not in _written(attack)]


def _written(attack: Attack) -> str:
    """Names that the client wrote itself are no news to it; `model` is echoed in a refusal."""
    return f"{ERASER} " * ("assistant" in attack.name) + " ".join(attack.models)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_without_its_guard_the_attack_succeeds(attack: Attack, engine: TorchEngine) -> None:
    async with client_under(engine, attack.opened) as client:
        found = [(await attack.attempt(Asker(client), fact), fact) for fact in SECRETS[:6]]
        named = sum(fact.town in each.towns for each, fact in found)
        assert named >= ENOUGH, f"{named} of {len(found)}"
        for each, fact in found:
            if each.logprobs:
                assert distance(each, await target_logprobs(client, fact)) < NEAR


async def test_the_stand_in_still_answers_what_it_may(closed: httpx.AsyncClient) -> None:
    """The control of the controls: the client's requests reach the composition, and are not refused for nothing."""
    ask = Asker(closed)
    said = [await ask.says(fact) for fact in (*SECRETS, *KEPT)]
    assert all(town in TOWNS for town in said)
    assert ask.refused == 0
    card = await ask.send("GET", f"/v1/models/{TARGET}")
    assert card["root"] == TARGET


async def test_masks_that_hold_end_an_answer(engine: TorchEngine) -> None:
    """A list of towns that the mask excludes ends the answer, as if it had been finished; without the policy the
    composition answers without its mask."""
    fact = SECRETS[0]
    excluded = next(town for town in TOWNS if town not in (fact.town, *fact.others))
    lists: list[Body] = [allowed_ids(excluded), choice_of(excluded), regex_of(excluded), grammar_of(excluded)]
    allow = {"token_lists": True, "structured_outputs": True}
    async with client_under(engine, {**CLOSED, "allow": allow}) as client:
        for only in lists:
            held = await Asker(client).chat(fact, **only)
            lifted = await Asker(client, "root-key").chat(fact, model="guide-forgetful", temperature=0, **only)
            assert held is not None
            assert lifted is not None
            choice = held["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
            assert lifted["choices"][0]["message"]["content"] == excluded
