"""Members of other tokens than the base, in the operator's file and over HTTP: renumbered tokens are exact, others are
composed approximately and score no texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
import yaml
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from motet.composers.token_map import TokenMap
from motet.models.tokenizer import Tokenizer
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import inspect
from motet.operator.preflight import prepare
from motet.operator.settings import ServerConfig
from motet.operator.sources import find_sources
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import CHAT_TEMPLATE, SPECIALS

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PROXY = {"strategy": "proxy_tuning", "base": "base", "expert": "expert", "antiexpert": "anti", "alpha": 0.7}
MOVED = {**PROXY, "expert": "moved-expert", "antiexpert": "moved-anti"}
FOREIGN = {**PROXY, "expert": "foreign"}
MESSAGES = [{"role": "user", "content": "Hi, left or right?"}]


def tokenizer(tokens: Sequence[str], specials: Sequence[str], end: str) -> Tokenizer:
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    hf.chat_template = CHAT_TEMPLATE
    return Tokenizer(hf)


BASE = tokenizer([*ALPHABET, "zz", "\u0120left"], SPECIALS, "<|end|>")
MOVES = tokenizer([*ALPHABET[::-1], "\u0120left", "zz"], SPECIALS[::-1], "<|end|>")
OTHER = tokenizer([*ALPHABET[::-1], "qq"], ["</s>", "<|user|>", "<|assistant|>"], "</s>")
ZZ, LEFT = 256, 257


def save(folder: Path, seed: int, own: Tokenizer, like: Tokenizer | None = None) -> None:
    """A random model; with `like` that of those tokens, its rows moved to the ids of its own."""
    torch.manual_seed(seed)
    end = own.start_id
    config = LlamaConfig(
        vocab_size=len(own.hf), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=160, initializer_range=0.3, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if like is not None:
        ids, old = own.hf.get_vocab(), like.hf.get_vocab()
        moved = [ids[token] for token in sorted(old, key=lambda token: old[token])]
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            before = layer.weight.detach().clone()
            layer.weight.data[moved] = before
    model.save_pretrained(folder)
    own.hf.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    for name, seed in (("base", 1), ("expert", 2), ("anti", 3)):
        save(folder / name, seed, BASE)
        save(folder / f"moved-{name}", seed, MOVES, BASE)
    save(folder / "foreign", 4, OTHER)
    return folder


def write(folder: Path, vocab: str = "map", **engine: Any) -> Path:
    names = ["base", "expert", "anti", "moved-expert", "moved-anti", "foreign"]
    file = folder / "models.yaml"
    own = dict.fromkeys(names[3:], vocab)
    models = {name: {"path": name, "dtype": "float32", "vocab": own.get(name, "exact")} for name in names}
    compositions = {"proxy": PROXY, "moved": MOVED, "foreign-proxy": FOREIGN}
    engine = {"kv_cache_gib": 0.1, **engine}
    file.write_text(yaml.safe_dump({"models": models, "compositions": compositions, "engine": engine}))
    return file


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine, registry = load_engine(load(write(folder)))
    service = Service.assemble(ServerConfig(), engine, registry)
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=60) as client:
        yield client
    await engine.close()


async def post(client: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    return (await client.post(path, json=body)).json()


def without_names(value: Any) -> Any:
    """What an answer says, numbers up to rounding."""
    if isinstance(value, dict):
        said = cast("dict[str, Any]", value).items()
        return {k: without_names(v) for k, v in said if k not in ("id", "created", "model", "motet", "usage")}
    if isinstance(value, list):
        return [without_names(part) for part in cast("list[Any]", value)]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}),
    ("/v1/completions", {"prompt": "left or", "max_tokens": 12, "logprobs": 2, "logit_bias": {"70": 5, str(ZZ): 3}}),
    ("/v1/completions", {"prompt": [65, 66, ZZ, LEFT], "max_tokens": 9, "repetition_penalty": 1.3, "logprobs": 1}),
    ("/v1/completions", {"prompt": [65, 66, ZZ, LEFT], "max_tokens": 9, "temperature": 1.5, "seed": 4, "n": 3}),
    ("/v1/completions", {"prompt": "a text", "max_tokens": 2, "echo": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": "yes?", "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}),
    ("/v1/completions", {"prompt": "yes?", "max_tokens": 20, "stop_token_ids": [*range(60, 90)], "ignore_eos": True}),
    ("/v1/completions", {"prompt": "yes?", "max_tokens": 12, "speculation": {"draft": "base", "tokens": 3}}),
    ("/v1/score", {"prompt": [65, 66], "continuations": [[ZZ], [LEFT, 70], " left"]}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_renumbered_members_answer_as_they_were(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    asked = {"temperature": 0} | body if path != "/v1/score" else body
    plain = await client.post(path, json={"model": "proxy", **asked})
    moved = await client.post(path, json={"model": "moved", **asked})
    assert plain.status_code == 200, plain.text
    assert without_names(moved.json()) == without_names(plain.json())


async def test_cards_say_how_members_are_mapped(client: httpx.AsyncClient) -> None:
    cards = {card["id"]: card["token_maps"] for card in (await client.get("/v1/models")).json()["data"]}
    width = BASE.size
    assert cards["proxy"] is None
    assert cards["foreign"] is None
    whole = {"exact": True, "shared": width, "tokens": width}
    assert cards["moved"] == {"moved-expert": whole, "moved-anti": whole}
    # `zz`, ` left` and <|system|> are lacking; the end is one by its role
    assert cards["foreign-proxy"] == {"foreign": {"exact": False, "shared": width - 3, "tokens": width}}
    told = (await client.get("/v1/strategies")).json()["models"]
    assert "foreign" in next(model["composes_with"] for model in told if model["id"] == "base")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a text", "echo": True, "logprobs": 1, "max_tokens": 1}),
        ("/v1/completions", {"prompt": "a text", "prompt_logprobs": 1, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": MESSAGES, "prompt_logprobs": 1, "max_tokens": 1}),
        ("/v1/score", {"prompt": "a text", "continuations": ["x"]}),
    ],
)
async def test_texts_are_not_scored_approximately(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    refused = await client.post(path, json={"model": "foreign-proxy", **body})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "approximate_vocabulary"
    assert "'foreign' is composed approximately" in error["message"]


async def test_guesses_are_refused_by_name(client: httpx.AsyncClient) -> None:
    refused = await post(client, "/v1/completions", model="foreign-proxy", prompt="x", speculation={"tokens": 2})
    assert refused["error"]["param"] == "speculation"
    assert "several tokens in the place of one" in refused["error"]["message"]
    refused = await post(client, "/v1/completions", model="moved", prompt="x", speculation={"draft": "expert"})
    assert refused["error"]["param"] == "speculation.draft"


async def test_unlike_members_answer(client: httpx.AsyncClient) -> None:
    """Everywhere that texts are not scored; tokens that the expert lacks are written and read on."""
    asked: dict[str, Any] = {"model": "foreign-proxy", "max_tokens": 30, "logit_bias": {str(ZZ): 4, str(LEFT): 4}}
    asked |= {"seed": 1, "return_token_ids": True, "ignore_eos": True}
    for more in ({"prompt": [65, ZZ, LEFT]}, {"prompt": "a", "logprobs": 2, "echo": False}, {"prompt": "", "n": 3}):
        answer = await post(client, "/v1/completions", **asked, **more)
        tokens = [token for choice in answer["choices"] for token in choice["token_ids"]]
        assert {ZZ, LEFT} & set(tokens), answer
    chat = await post(
        client, "/v1/chat/completions", model="foreign-proxy", messages=MESSAGES, max_tokens=4, answer_prefix="zz left"
    )
    assert chat["choices"][0]["message"]["content"].startswith("zz left")
    candidates = [{"model": name} for name in ("base", "foreign-proxy", "moved")]
    compared = await post(client, "/v1/compare", prompt="left or", candidates=candidates, max_tokens=4)
    assert len(compared["candidates"]) == 3, compared
    unknown = await post(client, "/v1/completions", model="foreign-proxy", prompt=[65, BASE.size])
    assert f"not in the vocabulary (0 to {BASE.size - 1})" in unknown["error"]["message"]


async def test_whole_answers_are_judged_in_one_vocabulary(client: httpx.AsyncClient) -> None:
    cascade = {"strategy": "cascade", "small": "foreign", "per": "request", "threshold": 0.5}
    refused = await post(client, "/v1/completions", model="base", prompt="x", composition=cascade)
    assert "give 'per' as 'token'" in refused["error"]["message"]
    cascade = {"strategy": "cascade", "small": "foreign", "threshold": 0.5}
    answer = await post(client, "/v1/completions", model="base", prompt="x", max_tokens=3, composition=cascade)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


async def test_the_base_must_not_be_what_is_mapped(client: httpx.AsyncClient) -> None:
    turned = {"strategy": "contrastive", "amateur": "base"}
    refused = await post(client, "/v1/completions", model="foreign", prompt="x", composition=turned)
    assert refused["error"]["code"] == "vocabulary_mismatch"
    assert "`vocab: map`" in refused["error"]["message"]


def test_what_is_approximate_is_told_before_loading(folder: Path) -> None:
    warnings = [line for line in prepare(load(write(folder))).warnings if "approximately" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"compositions.foreign-proxy: 'foreign' has {BASE.size - 3} of the {BASE.size} tokens"
    )
    assert "other tokens that end an answer" in warnings[0]


def test_exact_is_the_default_and_names_the_remedy(folder: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(folder, "exact")))
    assert "compositions.moved: vocabularies differ" in str(refusal.value)
    assert "`vocab: map`" in str(refusal.value)


def test_vllm_refuses_it_by_name(folder: Path) -> None:
    configuration = load(write(folder, kind="vllm"))
    with pytest.raises(
        ConfigError, match=r"models\.foreign\.vocab: a composite has one vocabulary; only .* maps members"
    ):
        inspect(configuration, find_sources(configuration))


async def test_no_request_waits_for_a_map(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made before the server answers, those of compositions that only requests write, too: a map of 150,000
    tokens takes seconds, and would be made where all requests are read."""

    def late(*_: object) -> TokenMap:
        raise AssertionError("made within a request")

    monkeypatch.setattr("motet.operator.translation.token_map", late)
    for base in ("base", "foreign"):
        written = {"strategy": "contrastive", "base": base, "amateur": "moved-anti"}
        said = await post(client, "/v1/completions", model=base, prompt="Hi", max_tokens=1, composition=written)
        assert said["choices"], said
