"""GGUF files of real models, against the folders that they were converted to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from motet.models.checkpoint import load_weights, read_config, read_generation_config, read_tokenizer
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.operator.preflight import prepare
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service

ROOT = Path(os.environ.get("MOTET_REAL_MODELS", ""))
NAMES = ("gemma3-270m", "qwen-0.5b")
TEXT = "Two red kites, 12345 metres high:\n\tnaïve 日本語 <|im_start|>user\n"

pytestmark = [
    pytest.mark.skipif(
        not any((ROOT / f"{name}.gguf").is_file() for name in NAMES),
        reason="MOTET_REAL_MODELS names no folder with gemma3-270m.gguf or qwen-0.5b.gguf",
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Of a checkpoint, given by some tests themselves."""
    return request.param


@pytest.fixture
def pair(name: str) -> tuple[Path, Path]:
    """(file, folder)"""
    file = ROOT / f"{name}.gguf"
    if not file.is_file() or not file.with_suffix("").is_dir():
        pytest.skip(f"{file} and its folder are not there")
    return file, file.with_suffix("")


def operator_file(folder: Path, pair: tuple[Path, Path]) -> Path:
    """In the dtype that the folder's weights were rounded to: the file's are quantised, and finer in float32."""
    file = folder / "models.yaml"
    models = {"file": {"path": str(pair[0])}, "folder": {"path": str(pair[1])}}
    file.write_text(yaml.safe_dump({"models": models, "engine": {"dtype": "bfloat16", "kv_cache_gib": 0.25}}))
    return file


def test_what_is_known_without_the_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = map(str, pair)
    own, theirs = read_config(file).to_dict(), read_config(folder).to_dict()
    differing = {name for name in own if own[name] != theirs.get(name)}
    assert differing <= {"_name_or_path", "_model_name_or_path", "architectures"}
    ends, told = read_generation_config(file), read_generation_config(folder)
    assert ends is not None
    assert told is not None
    assert told.eos_token_id in ends.to_dict()["eos_token_id"]
    ours, others = read_tokenizer(file), read_tokenizer(folder)
    assert ours.get_vocab() == others.get_vocab()
    assert ours.chat_template == others.chat_template
    for special in (False, True):
        assert ours.encode(TEXT, add_special_tokens=special) == others.encode(TEXT, add_special_tokens=special)
    started = time.monotonic()
    registry = prepare(load(operator_file(tmp_path, pair))).registry
    assert time.monotonic() - started < 60
    infos = [registry.members[name].info for name in ("file", "folder")]
    assert len({(info.num_parameters, info.kv_bytes_per_token, info.eos_token_ids) for info in infos}) == 1


def test_weights_are_those_of_the_folder(pair: tuple[Path, Path]) -> None:
    ours, others = (load_weights(str(path), dtype="auto").state_dict() for path in pair)
    assert ours.keys() == others.keys()
    assert all(tensor.equal(others[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("name", NAMES[:1])
async def test_answers_are_those_of_the_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    engine, registry = load_engine(load(operator_file(tmp_path, pair)))
    service = Service.assemble(ServerConfig(), engine, registry)
    transport = httpx.ASGITransport(app=create_app(service))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=300) as client:
            answers = [await _answer(client, name) for name in ("file", "folder")]
    finally:
        await engine.close()
    assert answers[0] == answers[1]
    chats = registry.members["file"].template == "chat"
    assert answers[0]["finish_reason"] == ("stop" if chats else "length")


async def _answer(client: httpx.AsyncClient, model: str) -> dict[str, Any]:
    """The greedy answer to a short question, with its log-probs."""
    question = [{"role": "user", "content": "Say hello, in one word."}]
    body = {"model": model, "messages": question, "max_tokens": 24, "temperature": 0, "logprobs": True}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    choice: dict[str, Any] = answer["choices"][0]
    return {name: choice[name] for name in ("message", "logprobs", "finish_reason")}
