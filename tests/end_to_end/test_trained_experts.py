"""Experts trained by recipes are loaded by the server and composed, and score what their own weights say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import torch as safetensors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from motet.experts.bundle import read_bundle
from motet.training.run.recipe_file import read_recipe
from motet.training.run.train import train
from tests.end_to_end.conftest import serving

SHORT = ["batch.rows=4", "batch.max_length=128", "schedule.steps=6", "schedule.warmup=1", "precision=float32"]
HEADS = ("gate", "router", "temperature-head", "similarity-head")
PROMPT, ANSWER = "Visitor: Where? Guide:", " Nobody knows."


@pytest.fixture(scope="module")
def trained(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, an expert trained through the composition that it serves in, a gate, a router, heads of
    temperatures and of clusters."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("sft-lora", "through-expert", *HEADS):
        recipe, origin = read_recipe(name, [f"root={family}", f"output={folder / name}", *SHORT])
        train(recipe, origin)
    own = [f"model.path={folder / 'similarity-head'}", "expert={role: adapters, strategy: adapters}"]
    recipe, origin = read_recipe("sft-lora", [f"root={family}", f"output={folder / 'beside'}", *own, *SHORT])
    train(recipe, origin)
    models = {name: {"path": str(family / name), "template": "plain"} for name in ("large", "small", "large-chat")}
    models |= {name: {"path": str(folder / name), "template": "chat"} for name in ("sft-lora", "through-expert")}
    models |= {name: {"path": str(folder / name), "template": "plain"} for name in HEADS}
    models["sft-lora"]["base"] = str(family / "small")
    models["beside"] = {"path": str(folder / "beside"), "base": models["similarity-head"]["path"], "template": "plain"}
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": models}))
    return folder


@torch.no_grad()
def log_probs(model: Any, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """(T, V) of the answer's tokens."""
    prompt = cast("list[int]", tokenizer(PROMPT)["input_ids"])
    answer = cast("list[int]", tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return cast("torch.Tensor", logits.log_softmax(-1))


def expected(family: Path, expert: Any) -> float:
    """The answer's log-probability under large + expert − small, from transformers and PEFT alone."""
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(family / "large"))
    large, small = (AutoModelForCausalLM.from_pretrained(family / name) for name in ("large", "small"))
    voices = [log_probs(model, tokenizer) for model in (large, expert, small)]
    composed = (voices[0] + voices[1] - voices[2]).log_softmax(-1)
    answer = cast("list[int]", tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    return composed.gather(-1, torch.tensor(answer)[:, None]).sum().item()


def test_trained_experts_are_served_and_composed(family: Path, trained: Path) -> None:
    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(family / "small"), str(trained / "sft-lora")
    )
    whole = AutoModelForCausalLM.from_pretrained(trained / "through-expert")
    with serving(trained / "models.yaml", "--dtype", "float32") as url:
        cards = {card["id"]: card for card in httpx.get(f"{url}/v1/models").json()["data"]}
        for name, model in (("sft-lora", adapter), ("through-expert", whole)):
            assert cards[name]["expert"]["strategy"] == "proxy_tuning"
            composition = {"strategy": "proxy_tuning", "expert": name, "antiexpert": "small"}
            body = {"model": "large", "prompt": PROMPT, "continuations": [ANSWER], "composition": composition}
            scored = httpx.post(f"{url}/v1/score", json=body, timeout=60).json()
            assert scored["data"][0]["logprob"] == pytest.approx(expected(family, model), abs=1e-3)
        wrong = {"strategy": "proxy_tuning", "expert": "sft-lora", "antiexpert": "large-chat"}
        body = {"model": "large", "prompt": PROMPT, "composition": wrong, "max_tokens": 1}
        refused = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert refused.status_code == 400
        assert "large-chat" in refused.json()["error"]["message"]


def test_a_trained_router_says_who_writes(family: Path, trained: Path) -> None:
    """Its own threshold, unless the request has another; what each model wrote is told and counted."""
    routed = {"strategy": "routed", "assistant": "large"}
    bundle = read_bundle(trained / "router")
    assert bundle is not None
    assert bundle.head is not None
    own = bundle.head.threshold
    assert own is not None
    with serving(trained / "models.yaml", "--dtype", "float32") as url:
        answers = {
            threshold: completed(url, "router", routed | ({} if threshold is None else {"threshold": threshold})).json()
            for threshold in (None, own, 0.0, 1.0)
        }
        drafted = completed(url, "router", routed, speculation={"draft": "base", "tokens": 4}).json()
        plain = [completed(url, name, None).json() for name in ("large", "router")]
        wrong = completed(url, "router", routed | {"threshold": "owl"})
        counted = httpx.get(f"{url}/metrics").text
    texts = {threshold: answer["choices"][0]["text"] for threshold, answer in answers.items()}
    assert texts[None] == texts[own] == drafted["choices"][0]["text"]
    assert [texts[0.0], texts[1.0]] == [answer["choices"][0]["text"] for answer in plain]
    total = Counter[str]()
    for threshold, answer in [*answers.items(), (None, drafted)]:
        limit = own if threshold is None else threshold
        trace = answer["choices"][0]["motet"]["trace"]
        by_large = sum(token["head"] > limit for token in trace)
        told = [("base", "router", len(trace) - by_large), ("assistant", "large", by_large)]
        assert [tuple(one.values()) for one in answer["motet"]["routed"]] == told
        total += Counter({role: count for role, _, count in told})
    assert answers[1.0]["motet"]["routed"][1]["tokens"] == answers[0.0]["motet"]["routed"][0]["tokens"] == 0
    assert "routed" not in plain[0]["motet"]
    for role, count in total.items():
        assert f'motet:routed_tokens_total{{role="{role}"}} {float(count)}' in counted
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"].startswith("composition.threshold")


def completed(url: str, model: str, composition: dict[str, Any] | None, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "trace": True, **fields}
    body |= {} if composition is None else {"composition": composition}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


@torch.no_grad()
def test_trained_heads_are_served(family: Path, trained: Path) -> None:
    """The folders' weights and heads, in transformers and safetensors alone, say what every token's distribution is."""
    routed = {"strategy": "routed", "assistant": "large", "threshold": None}
    with serving(trained / "models.yaml", "--dtype", "float32") as url:
        answers = {
            "gate": completed(url, "gate", routed),
            "temperature-head": completed(url, "temperature-head", {"strategy": "adaptive_temperature"}),
        }
        refused = completed(url, "small", routed)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "composition.base"
    assert "Models with a gate or router: gate, router." in refused.json()["error"]["message"]
    large = AutoModelForCausalLM.from_pretrained(family / "large")
    for name, answer in answers.items():
        tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(trained / name))
        base = AutoModelForCausalLM.from_pretrained(trained / name)
        head = {
            key: value.double() for key, value in safetensors.load_file(trained / name / "head.safetensors").items()
        }
        ids = cast("list[int]", tokenizer(PROMPT)["input_ids"])
        tokens = answer.json()["choices"][0]["motet"]["trace"]
        assert tokens
        for token in tokens:
            told = base(torch.tensor([ids]), output_hidden_states=True)
            hidden = told.hidden_states[-1][0, -1].double()
            share = float((head["linear.weight"][0] @ hidden + head["linear.bias"]).sigmoid())
            own, other = (logits[0, -1].double() for logits in (told.logits, large(torch.tensor([ids])).logits))
            if name == "gate":
                reading, wanted = share, ((1 - share) * own.softmax(-1) + share * other.softmax(-1)).log()
            else:
                reading = 0.1 + 1.9 * share
                wanted = (own / reading).log_softmax(-1)
            assert token["head"] == pytest.approx(reading, abs=1e-4)
            assert token["logprob"] == pytest.approx(float(wanted[token["token_id"]]), abs=1e-4)
            ids.append(token["token_id"])


@torch.no_grad()
def test_adapters_are_weighted_by_the_prompt(family: Path, trained: Path) -> None:
    """By the head's tensors, transformers' states and PEFT alone; the trace tells the weights, of every token the same.
    The adapter that was trained on the head's folder is rows of its forward."""
    composition = {"strategy": "adapters", "adapters": ["beside", "small"], "share": 0.2}
    prompts = [PROMPT, "Visitor: What is it? Guide:"]
    with serving(trained / "models.yaml", "--dtype", "float32") as url:
        answers = [completed(url, "similarity-head", composition, prompt=prompt).json() for prompt in prompts]
        refused = completed(url, "similarity-head", composition | {"adapters": ["small"]})
        cards = {card["id"]: card for card in httpx.get(f"{url}/v1/models").json()["data"]}
        counted = httpx.get(f"{url}/metrics").text
        unheard = completed(url, "large", composition)
    told = refused.json()["error"]
    assert (refused.status_code, told["param"]) == (400, "composition.adapters")
    assert "1 adapter for the 2 clusters" in told["message"]
    assert "in this order: refusals, courteous" in told["message"]
    assert (unheard.status_code, unheard.json()["error"]["param"]) == (400, "composition.base")
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(trained / "similarity-head"))
    assert cards["beside"]["parent"] == "similarity-head"
    assert 'forward_seconds_total{member="similarity-head"}' in counted
    assert 'member="beside"' not in counted
    near, again, small = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (trained / "similarity-head", trained / "similarity-head", family / "small")
    )
    models: list[Any] = [near, PeftModel.from_pretrained(again, str(trained / "beside")).eval(), small]
    tensors = safetensors.load_file(trained / "similarity-head" / "head.safetensors")
    head = {name: tensor.double() for name, tensor in tensors.items()}
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = cast("list[int]", tokenizer(prompt)["input_ids"])
        feature = models[0](torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].double()
        cosines = torch.cosine_similarity(feature[None], head["centroids"], dim=-1)
        weights = ((cosines - head["mean"]) / head["deviation"]).softmax(-1)
        for token in answer["choices"][0]["motet"]["trace"]:
            own, *others = (model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for model in models)
            z = 0.2 * own + 0.8 * (weights[0] * others[0] + weights[1] * others[1])
            assert token["alpha"] == pytest.approx([*map(float, weights)], abs=1e-3)
            assert token["logprob"] == pytest.approx(float(z.log_softmax(-1)[token["token_id"]]), abs=1e-3)
            ids.append(token["token_id"])
