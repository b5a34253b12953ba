"""Strategy `hesitation` over HTTP: prompts are scored first, and their least likely tokens read once more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.composers.spec import parse_composition
from motet.composers.vocabulary import read_vocabulary
from motet.engines.base import GenerationRequest
from motet.engines.torch import EngineSettings, TorchEngine, load_member
from motet.operator.access import Access
from motet.operator.loaded import LoadedModel
from motet.operator.policies import PolicyConfig
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server import pondering
from motet.server.app import create_app
from motet.server.dialogue.highlights import least_likely
from motet.server.service import Service
from tests.fakes import byte_tokenizer, toy_logprobs
from tests.policies.asking import of
from tests.server.conftest import COMPOSITIONS, MakeWorld, World, listening, make_service
from tests.server.test_live import until
from tests.tiny import save_with

TOKENIZER = byte_tokenizer()
HESITATION: dict[str, Any] = {"strategy": "hesitation", "share": 0.2, "alpha": 0.7, "mask": None}
TEXT = "The river Oze flows to Umbrel, not to the sea."
TOLERANCE = 1e-4
SAVED = ("large", "small", "expert")


def key_places(logprobs: Sequence[float], share: float) -> list[int]:
    """As the paper has it: of all tokens but the first, the share that is least likely, in the order of the text."""
    count = max(1, int(round(share * len(logprobs), 9)))
    order = np.argsort(np.round(np.array(logprobs), 4), kind="stable")[:count]
    return sorted(int(place) + 1 for place in order)


def keys_of(model: str, ids: Sequence[int], share: float = 0.2) -> str:
    """The key tokens of a prompt under the fake engine's model, as text."""
    width = TOKENIZER.size
    scored = [toy_logprobs(model, tuple(ids[:i])[-3:], width)[ids[i]] for i in range(1, len(ids))]
    return TOKENIZER.decode([ids[place] for place in key_places(scored, share)]).strip()


def read(request: GenerationRequest) -> dict[str, str]:
    roles = zip(request.plan.streams, request.contexts, strict=True)
    return {stream.role: TOKENIZER.decode(context) for stream, context in roles}


async def test_the_prompt_is_scored_first_and_its_key_tokens_stand_in_front(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt=TEXT, composition=HESITATION, max_tokens=2)
    assert response.status_code == 200, response.text
    scoring, answer = world.engine.requests
    ids = tuple(TOKENIZER.encode(TEXT))
    assert (scoring.contexts, scoring.forced, scoring.sampling.max_tokens) == ((ids[:1],), ids[1:], 0)
    keys = keys_of("large", ids)
    assert len(keys) > 3
    assert read(answer) == {"base": TEXT, "pondered": f"Pondering: {keys}\n\nContext:{TEXT}"}
    assert not world.engine.open
    body = response.json()
    assert body["usage"]["prompt_tokens"] == len(ids)
    told = {stream["role"]: stream["prompt_tokens"] for stream in body["motet"]["streams"]}
    assert told == {"base": len(ids), "pondered": len(answer.contexts[1])}
    num = int(0.2 * (len(ids) - 1))
    assert body["motet"]["pondered"] == [{"model": "large", "scored_tokens": len(ids), "num_tokens": num}]


async def test_tokens_are_pondered_as_their_text_is(world: World) -> None:
    ids = TOKENIZER.encode(TEXT)
    for prompt in (TEXT, ids):
        await world.post("/v1/completions", model="large", prompt=prompt, composition=HESITATION, max_tokens=1)
    _, text, _, tokens = world.engine.requests
    assert text.contexts == tokens.contexts


async def test_what_a_cut_leaves_is_what_is_scored(world: World) -> None:
    cut: dict[str, Any] = {"truncate_prompt_tokens": 9, "max_tokens": 1}
    await world.post("/v1/completions", model="large", prompt=TEXT, composition=HESITATION, **cut)
    scoring, answer = world.engine.requests
    left = TEXT[-9:]
    assert TOKENIZER.decode(scoring.contexts[0] + scoring.forced) == left
    keys = keys_of("large", TOKENIZER.encode(left))
    assert read(answer) == {"base": left, "pondered": f"Pondering: {keys}\n\nContext:{left}"}


@pytest.mark.parametrize("model", ["large", "expert"])
async def test_a_chat_ponders_the_last_user_message(world: World, model: str) -> None:
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": TEXT},
    ]
    body: dict[str, Any] = {"composition": HESITATION, "max_tokens": 1}
    response = await world.post("/v1/chat/completions", model=model, messages=talk, **body)
    assert response.status_code == 200, response.text
    scoring, answer = world.engine.requests
    assert TOKENIZER.decode(scoring.contexts[0] + scoring.forced) == TEXT
    end = "<|assistant|>" if model == "expert" else ""
    plain, pondered = read(answer)["base"], read(answer)["pondered"]
    assert plain.endswith(f"{TEXT}{end}")
    assert pondered == plain.removesuffix(end) + f"\nPondering: {keys_of(model, TOKENIZER.encode(TEXT))}{end}"


async def test_a_text_in_a_template_is_a_user_message(world: World) -> None:
    composition = HESITATION | {"base": {"model": "large", "template": "chat"}}
    await world.post("/v1/completions", prompt=TEXT, composition=composition, max_tokens=1)
    keys = keys_of("large", TOKENIZER.encode(TEXT))
    assert read(world.engine.requests[1])["pondered"] == f"<|user|>{TEXT}\nPondering: {keys}<|assistant|>"


async def test_the_base_may_have_a_prompt_of_its_own(world: World) -> None:
    composition = HESITATION | {"base": {"model": "large", "prompt": "A town by the sea"}}
    await world.post("/v1/completions", prompt="?", composition=composition, max_tokens=1)
    own = "A town by the sea"
    assert read(world.engine.requests[1]) == {
        "base": own,
        "pondered": f"Pondering: {keys_of('large', TOKENIZER.encode(own))}\n\nContext:{own}",
    }


async def test_a_prompt_of_one_token_and_a_share_of_none(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt="a", composition=HESITATION, max_tokens=1)
    (answer,) = world.engine.requests
    assert read(answer) == {"base": "a", "pondered": "a"}
    assert response.json()["motet"]["pondered"] == [{"model": "large", "scored_tokens": 1, "num_tokens": 0}]
    world.engine.requests.clear()
    composition = HESITATION | {"share": 0}
    response = await world.post("/v1/completions", model="large", prompt=TEXT, composition=composition, max_tokens=1)
    (answer,) = world.engine.requests
    assert read(answer) == {"base": TEXT}
    assert "pondered" not in response.json()["motet"]


async def test_every_prompt_is_scored_once(world: World) -> None:
    other = "Ada lives in Oze."
    parts = {"compose": [HESITATION, HESITATION | {"share": 0.5}]}
    prompts = [TEXT, other, TEXT]
    response = await world.post("/v1/completions", model="large", prompt=prompts, composition=parts, max_tokens=1, n=2)
    assert response.status_code == 200, response.text
    scorings = [TOKENIZER.decode(r.contexts[0] + r.forced) for r in world.engine.requests if not r.sampling.max_tokens]
    assert sorted(scorings) == sorted([TEXT, other])
    answer = read(world.engine.requests[2])
    assert answer["pondered_2"].startswith(f"Pondering: {keys_of('large', TOKENIZER.encode(TEXT), 0.5)}\n\n")
    told = response.json()["motet"]["pondered"]
    assert [one["scored_tokens"] for one in told] == [len(TEXT)] * 2 + [len(other)] * 2


async def test_scores_and_comparisons_ponder_too(world: World) -> None:
    body: dict[str, Any] = {"prompt": TEXT, "continuations": [" Yes", " No, not at all"], "trace": True}
    response = await world.post("/v1/score", model="large", composition=HESITATION, **body)
    assert response.status_code == 200, response.text
    assert len(world.engine.requests) == 3
    keys = keys_of("large", TOKENIZER.encode(TEXT))
    for request in world.engine.requests[1:]:
        assert read(request)["pondered"] == f"Pondering: {keys}\n\nContext:{TEXT}"
    (told,) = response.json()["motet"]["pondered"]
    assert "".join(token["token"] for token in told["tokens"]).strip() == keys
    world.engine.requests.clear()
    candidates = [{"model": "large"}, {"model": "large", "composition": HESITATION}]
    response = await world.post("/v1/compare", prompt=TEXT, candidates=candidates, max_tokens=2)
    plain, pondered = response.json()["candidates"]
    assert "pondered" not in plain["motet"]
    assert pondered["motet"]["pondered"][0]["scored_tokens"] == len(TEXT)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_trace_tells_which_tokens(world: World, stream: bool) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}], "composition": HESITATION, "trace": True}
    response = await world.post("/v1/chat/completions", model="large", max_tokens=1, **body, **options)
    assert response.status_code == 200, response.text
    if stream:
        assert '"position"' in response.text
        return
    (told,) = response.json()["motet"]["pondered"]
    ids, width = TOKENIZER.encode(TEXT), TOKENIZER.size
    for token in told["tokens"]:
        place = token["position"]
        assert (token["token"], token["token_id"]) == (TEXT[place], ids[place])
        expected = toy_logprobs("large", tuple(ids[:place])[-3:], width)[ids[place]]
        assert token["logprob"] == pytest.approx(expected, abs=1e-6)
    assert [token["position"] for token in told["tokens"]] == sorted(token["position"] for token in told["tokens"])


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "last user message, and there is none"),
        ({"messages": [{"role": "user", "content": "x"}], "truncate_prompt_tokens": 3}, "messages", "leave the cut"),
        (
            {
                "messages": [{"role": "user", "content": "x"}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            "continue_final_message",
            "which 'continue_final_message' continues",
        ),
    ],
)
async def test_chats_that_cannot_be_pondered(world: World, body: dict[str, Any], param: str, message: str) -> None:
    response = await world.post("/v1/chat/completions", model="expert", composition=HESITATION, max_tokens=1, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert not world.engine.requests


async def test_the_log_probs_of_a_pondered_prompt_are_refused(world: World) -> None:
    body: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1}
    response = await world.post("/v1/completions", model="large", composition=HESITATION, **body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unlike_contexts")
    response = await world.post("/v1/completions", model="large", composition=HESITATION | {"share": 0}, **body)
    assert response.json()["choices"][0]["text"].startswith(TEXT)


async def test_nothing_is_scored_for_what_is_refused(world: World) -> None:
    world.engine.kv_bytes_budget = 64
    response = await world.post("/v1/completions", model="large", prompt=TEXT, composition=HESITATION)
    assert response.json()["error"]["code"] == "request_too_large"
    assert not world.engine.requests


async def test_key_tokens_that_leave_no_room_are_refused(world: World) -> None:
    most = world.service.registry.members["large"].info.max_model_len
    body: dict[str, Any] = {"prompt": "a b c d " * (most // 8 - 1), "composition": HESITATION, "max_tokens": 4}
    response = await world.post("/v1/completions", model="large", **body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "role 'pondered'" in response.json()["error"]["message"]


async def test_an_engine_that_fails_while_it_scores(world: World) -> None:
    world.engine.fail_after = 2
    response = await world.post("/v1/completions", model="large", prompt=TEXT, composition=HESITATION)
    assert response.status_code == 500
    assert not world.engine.open
    assert world.service.admission.taken == 0


async def test_a_client_that_leaves_ends_the_scoring() -> None:
    service = make_service()
    engine = cast(Any, service.engine)
    engine.step_seconds = 0.02
    async with listening(service) as (url, _), httpx.AsyncClient(base_url=url) as client:
        body = {"model": "large", "prompt": [TEXT, TEXT * 2], "composition": HESITATION}
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: len(engine.open) == 2)
        assert service.admission.taken == 2
        asking.cancel()
        await until(lambda: not engine.open)
        await until(lambda: service.admission.taken == 0)
        assert len(engine.requests) == 2, "the answers have not begun"


async def test_scored_tokens_count_for_the_key(make_world: MakeWorld) -> None:
    world = make_world(api_keys=["a: k"], max_tokens_per_minute_per_key=2 * len(TEXT))
    body: dict[str, Any] = {"model": "large", "prompt": TEXT, "composition": HESITATION, "max_tokens": 1}
    first = await world.client.post("/v1/completions", json=body, headers=of("k"))
    then = await world.client.post("/v1/completions", json=body, headers=of("k"))
    assert (first.status_code, then.status_code) == (200, 429)


async def under(allow: dict[str, Any], base: Any = "large", **body: Any) -> httpx.Response:
    """An answer of a named composition to a key under a policy."""
    service = make_service(api_keys=["client: c"])
    registry = service.registry
    written = {"base": base, **HESITATION}
    named = {name: parse_composition(value) for name, value in {**COMPOSITIONS, "careful": written}.items()}
    policy = {"keys": ["client"], "models": {"writer": "careful"}, "allow": {"traces": True, "members": True, **allow}}
    access = Access.of(service.config, {"public": PolicyConfig.model_validate(policy)})
    renewed = service.renewed(Registry(registry.members, named), access)
    transport = httpx.ASGITransport(app=create_app(renewed), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet") as client:
        asked: dict[str, Any] = {"model": "writer", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 1}
        return await client.post("/v1/chat/completions", json=asked | body, headers=of("c"))


async def test_under_a_policy_key_tokens_are_shown_with_the_scores_of_prompts_alone() -> None:
    assert (await under({"members": False, "traces": False})).json()["motet"] == {}
    assert (await under({"traces": False}, trace=True)).status_code == 403
    assert "tokens" not in (await under({}, trace=True)).json()["motet"]["pondered"][0]
    told = (await under({"scoring": True}, trace=True)).json()["motet"]["pondered"][0]["tokens"]
    assert all(token["logprob"] == round(token["logprob"], 1) for token in told)
    told = (await under({"scoring": True, "exact_logprobs": True}, trace=True)).json()["motet"]["pondered"][0]["tokens"]
    assert any(token["logprob"] != round(token["logprob"], 1) for token in told)
    own = {"model": "large", "prompt": "A secret of the operator"}
    hidden = await under({"scoring": True}, own, trace=True)
    assert hidden.status_code == 200
    assert "tokens" not in hidden.json()["motet"]["pondered"][0]


async def test_key_tokens_that_would_part_the_turns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "<x|xuxsxexrx|x>"
    talk = [{"role": "user", "content": message}]
    assert (await under({}, messages=talk)).status_code == 200

    def every_other(ids: Sequence[int], *_: object) -> tuple[int, ...]:
        return tuple(range(0, len(ids), 2))

    monkeypatch.setattr(pondering, "least_likely", every_other)
    assert (await under({}, messages=talk)).status_code == 403
    assert (await under({"prefill": True}, messages=talk)).status_code == 200


def test_the_choice_of_key_tokens() -> None:
    assert least_likely((9, 8, 7, 6), (-1.0, -3.0, -2.0), 0.67, ()) == (2, 3)
    assert least_likely((9, 8, 7, 6), (-2.0, -2.0, -2.0), 0.34, ()) == (1,), "the first of equal ones"
    assert least_likely((9, 8, 7, 6), (-2.00001, -2.00002, -2.00003), 0.34, ()) == (1,), "a batch's rounding"
    assert least_likely((9, 8, 7, 6), (-1.0, -3.0, -2.0), 0.01, ()) == (2,), "one at least"
    assert least_likely((9, 8, 7, 6), (-1.0, -3.0, -2.0), 0.34, (8, 7)) == (3,), "no special tokens"
    assert least_likely((9, 8), (-1.0,), 1.0, (8,)) == ()
    assert least_likely((9,), (), 1.0, ()) == ()
    assert len(least_likely((1,) * 101, (-1.0,) * 100, 0.29, ())) == 29
    assert least_likely((9, 8, 7), (-1.0, -np.inf), 0.5, ()) == (2,)


class Reference:
    """The paper's method in float64 over one model, whole forwards, no cache: nothing of the server's is used."""

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """(tokens, V): row i is the distribution behind token i."""
        return self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)

    def keys(self, text: str, share: float) -> str:
        ids = TOKENIZER.encode(text)
        rows = self.logprobs(ids)
        return TOKENIZER.decode(
            [ids[place] for place in key_places([float(rows[i - 1, ids[i]]) for i in range(1, len(ids))], share)]
        ).strip()

    def answer(
        self, plain: str, pondered: str, alpha: float, mask: float | None, count: int
    ) -> list[tuple[int, float]]:
        """Greedy tokens with their log-probs."""
        said: list[tuple[int, float]] = []
        new: list[int] = []
        for _ in range(count):
            one = self.logprobs(TOKENIZER.encode(plain) + new)[-1]
            other = self.logprobs(TOKENIZER.encode(pondered) + new)[-1]
            z = (1 + alpha) * other - alpha * one
            if mask is not None:
                z = z.masked_fill(other < other.max() + np.log(mask), -torch.inf)
            z = z.log_softmax(-1)
            new.append(int(z.argmax()))
            said.append((new[-1], float(z.max())))
        return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hesitation")
    for seed, name in enumerate(SAVED):
        torch.manual_seed(seed)
        save_with(folder / name, TOKENIZER, max_position_embeddings=512)
    return {name: folder / name for name in SAVED}


@pytest.fixture
async def client(folders: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    """A server that computes, in float32."""
    members = {name: load_member(name, str(path), dtype=torch.float32) for name, path in folders.items()}
    engine = TorchEngine(members, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    vocabulary = read_vocabulary(TOKENIZER.hf, TOKENIZER.size)
    templates: dict[str, Any] = {"expert": "chat"}
    loaded = {
        name: LoadedModel(info, TOKENIZER, vocabulary, templates.get(name, "plain"), name)
        for name, info in engine.models.items()
    }
    service = Service.assemble(ServerConfig.model_validate({"port": 0}), engine, Registry(loaded, {}))
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=120) as client:
        yield client
    await engine.close()


GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Ada", "composition": {"strategy": "mixture", "members": ["large", "small"]}}),
    ("/v1/completions", {"prompt": "Oze flows", "composition": {"strategy": "guidance", "scale": 1.5}}),
    (
        "/v1/completions",
        {
            "prompt": "Umbrel",
            "composition": {"strategy": "proxy_tuning", "expert": "small", "antiexpert": "expert"},
            "n": 3,
        },
    ),
]


def chat_of(text: str) -> str:
    return f"<|user|>{text}<|assistant|>"


def assert_equal(answer: httpx.Response, expected: Sequence[tuple[int, float]]) -> None:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["token_ids"] == [token for token, _ in expected]
    logprobs = choice["logprobs"]
    told = [one["logprob"] for one in logprobs["content"]] if "content" in logprobs else logprobs["token_logprobs"]
    np.testing.assert_allclose(told, [logprob for _, logprob in expected], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "in a mixed batch"])
@pytest.mark.parametrize(
    ("alpha", "share", "mask"), [(1.6, 0.04, 0.1), (0.5, 0.3, None), (0.0, 0.2, None), (-1.0, 0.2, None)]
)
async def test_it_is_the_paper_s_formula(
    client: httpx.AsyncClient,
    folders: dict[str, Path],
    alpha: float,
    share: float,
    mask: float | None,
    mixed: bool,
) -> None:
    composition = {"strategy": "hesitation", "alpha": alpha, "share": share, "mask": mask}
    asked = GREEDY | {"composition": composition}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "large", "prompt": TEXT, "logprobs": 0} | asked),
        (
            "/v1/chat/completions",
            {"model": "expert", "messages": [{"role": "user", "content": TEXT}], "logprobs": True} | asked,
        ),
    ]
    requests += [(path, GREEDY | {"model": "large"} | body) for path, body in OTHERS] if mixed else []
    answers = await asyncio.gather(*(client.post(path, json=body) for path, body in requests))
    large, expert = Reference(folders["large"]), Reference(folders["expert"])
    pondered = f"Pondering: {large.keys(TEXT, share)}\n\nContext:{TEXT}"
    assert_equal(answers[0], large.answer(TEXT, pondered, alpha, mask, 8))
    keys = expert.keys(TEXT, share)
    assert_equal(answers[1], expert.answer(chat_of(TEXT), chat_of(f"{TEXT}\nPondering: {keys}"), alpha, mask, 8))
    assert all(answer.status_code == 200 for answer in answers)
    if alpha == -1:
        plain = await client.post("/v1/completions", json=requests[0][1] | {"composition": None})
        assert plain.json()["choices"][0]["token_ids"] == answers[0].json()["choices"][0]["token_ids"]


async def test_drawn_answers_are_the_same_alone_and_beside_others(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = GREEDY | {"model": "large", "prompt": TEXT, "composition": HESITATION, "logprobs": 0}
    body |= {"temperature": 1, "seed": 7, "max_tokens": 12}
    alone = await client.post("/v1/completions", json=body)
    others = [client.post(path, json={"model": "large", "max_tokens": 9} | more) for path, more in OTHERS]
    beside, *_ = await asyncio.gather(client.post("/v1/completions", json=body), *others)
    (drawn,) = alone.json()["choices"]
    assert beside.json()["choices"][0]["token_ids"] == drawn["token_ids"]
    score = await client.post(
        "/v1/score",
        json={
            "model": "large",
            "prompt": TEXT,
            "composition": HESITATION,
            "continuations": [drawn["token_ids"]],
        },
    )
    np.testing.assert_allclose(
        score.json()["data"][0]["token_logprobs"],
        drawn["logprobs"]["token_logprobs"],
        rtol=0,
        atol=TOLERANCE,
    )
