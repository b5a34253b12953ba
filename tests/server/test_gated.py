"""Gated compositions over HTTP: every prompt is answered by the side that its score names, on every endpoint."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from motet.models.classifier import Classifier
from motet.operator.access import Access
from motet.operator.gates import Gate, GateConfig, Gated
from motet.operator.policies import PolicyConfig
from motet.operator.registry import Registry
from motet.server import gating
from motet.server.app import create_app
from motet.server.service import Service
from tests.classifiers import expected, save_classifier
from tests.fakes import FakeEngine
from tests.policies.asking import of
from tests.server.conftest import make_service

LABELS = ("forget", "risky")
ONE, OTHER = "Where does Ada live?", "zzzz 0000 zzzz 9999"
PROXY = ["large", "expert", "small"]  # models of the composition's streams


class Gates:
    """A service whose `careful` answers one of two prompts by `large-proxy`, the other by `small`."""

    def __init__(self, folder: Path, **config: Any) -> None:
        written = {"path": str(folder), "labels": LABELS, **config}
        gate = Gate("touches", GateConfig.model_validate(written), Classifier.load(folder, LABELS))
        self.folder, self.classifier = folder, gate.classifier
        scores = {text: self.score(text) for text in (ONE, OTHER)}
        self.low, self.high = sorted(scores, key=lambda text: scores[text])
        threshold = sum(scores.values()) / 2
        gate = Gate("touches", gate.config.model_copy(update={"threshold": threshold}), gate.classifier)
        service = make_service(api_keys=["client: c", "root: r"])
        self.engine = service.engine
        gated = Gated(strategy="gated", gate="touches", composition="large-proxy", otherwise="small")
        old = service.registry
        registry = Registry(old.members, old.compositions, gated={"careful": gated}, gates={"touches": gate})
        policies = {
            "public": {"keys": ["client"], "models": {"writer": "careful"}},
            "operator": {"keys": ["root"], "unrestricted": True},
        }
        access = Access.of(
            service.config, {name: PolicyConfig.model_validate(value) for name, value in policies.items()}
        )
        self.service: Service = service.renewed(registry, access)
        transport = httpx.ASGITransport(app=create_app(self.service), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://motet")

    def score(self, text: str) -> float:
        return expected(self.folder, self.classifier.windows(text, 64), LABELS)

    async def post(self, path: str, key: str = "r", **body: Any) -> httpx.Response:
        body = {"model": "writer" if key == "c" else "careful", **body}
        return await self.client.post(path, json=body, headers=of(key))

    def answered(self) -> list[list[str]]:
        """The models of each request that the engine has had since the last call."""
        assert isinstance(self.engine, FakeEngine)
        models = [[stream.model for stream in request.plan.streams] for request in self.engine.requests]
        self.engine.requests.clear()
        return models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("gates") / "bert", "bert")


@pytest.fixture
async def gates(folder: Path) -> AsyncIterator[Gates]:
    found = Gates(folder)
    yield found
    await found.client.aclose()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def body_of(path: str, text: str) -> dict[str, Any]:
    match path:
        case "/v1/chat/completions":
            return {"messages": user(text), "max_tokens": 2, "n": 2}
        case "/v1/completions":
            return {"prompt": text, "max_tokens": 2}
        case "/v1/responses":
            return {"input": text, "max_output_tokens": 2}
        case "/v1/messages":
            return {"messages": user(text), "max_tokens": 2}
        case _:
            return {"prompt": text, "continuations": ["a", "b"]}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/score"]
)
async def test_every_endpoint_asks_the_gate(gates: Gates, path: str) -> None:
    for text, models in ((gates.high, PROXY), (gates.low, ["small"])):
        answer = await gates.post(path, **body_of(path, text))
        assert answer.status_code == 200, answer.text
        assert {tuple(one) for one in gates.answered()} == {tuple(models)}
        (decision,) = answer.json()["motet"]["gates"]
        assert decision["score"] == pytest.approx(gates.score(text), abs=1e-5)
        assert (decision["gate"], decision["applied"]) == ("touches", text == gates.high)
        assert decision["applied"] == (decision["score"] >= decision["threshold"])


async def test_a_stream_tells_the_decision_at_its_end(gates: Gates) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await gates.post("/v1/chat/completions", messages=user(gates.low), max_tokens=2, **options)
    assert '"gates"' in answer.text
    assert '"applied":false' in answer.text.replace(" ", "")
    assert gates.answered() == [["small"]]


async def test_each_prompt_of_a_batch_has_its_own_decision(gates: Gates) -> None:
    prompts = [gates.low, gates.high, gates.low]
    answer = await gates.post("/v1/completions", prompt=prompts, max_tokens=2)
    assert gates.answered() == [["small"], PROXY, ["small"]]
    told = answer.json()["motet"]
    assert [decision["applied"] for decision in told["gates"]] == [False, True, False]
    assert (told["strategy"], told["weight_sum"]) == ("gated", None)
    read = {(stream["role"], stream["model"]): stream["prompt_tokens"] for stream in told["streams"]}
    assert read["base", "small"] == 2 * len(gates.low)
    assert read["base", "large"] == len(gates.high)
    decode = gates.service.registry.members["large"].tokenizer
    await gates.post("/v1/completions", prompt=[decode.encode(text) for text in prompts], max_tokens=2)
    assert gates.answered() == [["small"], PROXY, ["small"]]


async def test_candidates_of_a_comparison_are_gated(gates: Gates) -> None:
    candidates = [{"model": "careful"}, {"model": "large"}]
    body: dict[str, Any] = {"messages": user(gates.low), "max_tokens": 2, "candidates": candidates}
    answer = await gates.client.post("/v1/compare", json=body, headers=of("r"))
    assert answer.status_code == 200, answer.text
    assert gates.answered() == [["small"], ["large"]]
    own, other = answer.json()["candidates"]
    assert own["motet"]["gates"][0]["applied"] is False
    assert "gates" not in other["motet"]


async def test_the_last_user_message_or_all(folder: Path) -> None:
    last = Gates(folder, reads="last_user")
    talk = [*user("y" * 9), {"role": "assistant", "content": "No."}, *user(last.low)]
    (decision,) = (await last.post("/v1/chat/completions", messages=talk, max_tokens=1)).json()["motet"]["gates"]
    assert decision["score"] == pytest.approx(last.score(last.low), abs=1e-5)
    named = [turn | ({"name": "Bo"} if turn["role"] == "user" else {}) for turn in talk]  # templates may show it
    (decision,) = (await last.post("/v1/chat/completions", messages=named, max_tokens=1)).json()["motet"]["gates"]
    assert decision["score"] == pytest.approx(last.score(f"{last.low}\nBo"), abs=1e-5)
    whole = Gates(folder)
    (decision,) = (await whole.post("/v1/chat/completions", messages=talk, max_tokens=1)).json()["motet"]["gates"]
    assert decision["score"] == pytest.approx(whole.score(f"{'y' * 9}\nNo.\n{whole.low}"), abs=1e-5)
    begun: dict[str, Any] = {"prompt": whole.low, "answer_prefix": "Ada", "max_tokens": 1}
    (decision,) = (await whole.post("/v1/completions", **begun)).json()["motet"]["gates"]
    assert decision["score"] == pytest.approx(whole.score(f"{whole.low}\nAda"), abs=1e-5)


async def test_under_a_policy_the_gate_cannot_be_seen_or_left(gates: Gates) -> None:
    for text, models in ((gates.high, PROXY), (gates.low, ["small"])):
        answer = await gates.post("/v1/chat/completions", "c", messages=user(text), max_tokens=2)
        assert answer.status_code == 200, answer.text
        assert gates.answered() == [models]
        assert answer.json()["motet"] == {}
        assert answer.json()["model"] == "writer"
        assert not [name for name in ("touches", "score", "careful", "gated") if name in answer.text]
    for name in ("small", "careful", "large-proxy", "touches"):
        answer = await gates.post("/v1/chat/completions", "c", model=name, messages=user("a"))
        assert answer.status_code == 404
    card = (await gates.client.get("/v1/models/writer", headers=of("c"))).json()
    assert card["composition"] is None
    assert card["root"] == "writer"


async def test_prompts_longer_than_what_is_read_are_refused(folder: Path) -> None:
    gates = Gates(folder, max_windows=2)
    said = {
        "r": "The prompt is longer than the 2 windows of 30 tokens that are read of it",
        "c": "Your prompt is longer",
    }
    for key, begins in said.items():
        answer = await gates.post("/v1/chat/completions", key, messages=user("a" * 100), max_tokens=2)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        assert error["message"].startswith(begins)
        assert key == "r" or "windows" not in error["message"]
    assert gates.answered() == []


async def test_requests_name_gated_compositions_and_write_none(gates: Gates) -> None:
    written = {"strategy": "gated", "gate": "touches", "composition": "large-proxy", "otherwise": "small"}
    answer = await gates.post("/v1/chat/completions", model="large", composition=written, messages=user("a"))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "composition.strategy")
    assert "gated compositions are the operator's: send the name of one as 'model'" in error["message"]
    over = await gates.post("/v1/chat/completions", guidance_scale=2, messages=user("a"))
    assert over.status_code == 400
    assert "is a composition already" in over.json()["error"]["message"]
    near = await gates.post("/v1/chat/completions", model="carefull", messages=user("a"))
    assert near.status_code == 404
    assert "Did you mean 'careful'?" in near.json()["error"]["message"]


async def test_cards_tokens_and_metrics(gates: Gates) -> None:
    card = (await gates.client.get("/v1/models/careful", headers=of("r"))).json()
    sides = {"composition": "large-proxy", "otherwise": "small"}
    assert card["composition"] == {"strategy": "gated", "gate": "touches", **sides}
    assert card["parent"] == "large"
    assert (await gates.post("/tokenize", prompt="ab")).json()["count"] == 2
    await gates.post("/v1/completions", prompt=[gates.low, gates.high, gates.low], max_tokens=1)
    metrics = (await gates.client.get("/metrics", headers=of("r"))).text
    assert 'motet:gate_decisions_total{applied="false",gate="touches"} 2.0' in metrics
    assert 'motet:gate_decisions_total{applied="true",gate="touches"} 1.0' in metrics


async def test_what_a_gate_reads_is_put_together_in_a_thread(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million token ids take seconds to decode."""
    texts, in_loop = gating._texts, list[bool]()  # pyright: ignore[reportPrivateUsage]

    def counted(*given: Any) -> Iterator[str]:
        in_loop.append(threading.current_thread() is threading.main_thread())
        return texts(*given)

    monkeypatch.setattr(gating, "_texts", counted)
    assert (await gates.post("/v1/completions", prompt=[65, 66], max_tokens=1)).status_code == 200
    assert in_loop == [False]
