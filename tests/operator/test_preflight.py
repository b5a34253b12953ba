"""Everything that can be known before weights are read, in `config validate` and at the start of `serve`."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import MambaConfig
from typer.testing import CliRunner

from motet.cli import app
from motet.models import memory
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.port import bind, exposed, release, url
from motet.operator.preflight import prepare
from motet.operator.settings import ServerConfig
from tests.fakes import byte_tokenizer
from tests.ggufs import tiny_qwen, write_gguf
from tests.tiny import save_with

RUN = CliRunner()
CONTRAST = {"strategy": "contrastive", "base": "one", "amateur": "two"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_with(folder / "one", byte_tokenizer(), eos_token_id=256)
    save_with(folder / "other", byte_tokenizer(extra=["zz"]))
    save_with(folder / "bare", byte_tokenizer(chat_template=None))
    write_gguf(folder / "packed.gguf", tiny_qwen(byte_tokenizer()), byte_tokenizer())
    return folder


def write(folder: Path, models: dict[str, Any], **rest: Any) -> Path:
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": models, **rest}))
    return file


def refused(folder: Path, models: dict[str, Any], **rest: Any) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        prepare(load(write(folder, models, **rest)))
    return refusal.value.problems


async def test_a_gguf_file_is_served_as_the_folder_is(models: Path) -> None:
    file = write(models, {"one": {"path": "packed.gguf"}}, engine={"dtype": "float32"})
    engine, registry = load_engine(load(file))
    try:
        info = engine.models["one"]
        assert (info.dtype, info.max_model_len) == ("float32", 64)
        assert info.eos_token_ids == (byte_tokenizer().single_id("<|end|>"),)
        assert registry.members["one"].template == "chat"
    finally:
        await engine.close()


def test_vocabularies_are_compared_before_weights_are_read(models: Path) -> None:
    (said,) = refused(models, {"one": {"path": "one"}, "two": {"path": "other"}}, compositions={"mix": CONTRAST})
    assert said.startswith("compositions.mix: vocabularies differ")


def test_templates_are_checked_before_weights_are_read(models: Path) -> None:
    (said,) = refused(models, {"bare": {"path": "bare", "template": "chat"}})
    assert said == "models.bare.template: the model has no chat template."


def test_a_hub_id_that_is_nowhere_is_one_sentence_at_once(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    (said,) = refused(models, {"one": {"path": "foo/bar"}})
    assert time.monotonic() - started < 5
    assert said.startswith(f"models.one: {models / 'foo/bar'} does not exist, and as a hub id: ")
    assert said.endswith("HF_HUB_OFFLINE forbids asking the hub.")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["./foo/bar", "../foo", "~/foo/bar", "/foo/bar", "foo/bar.gguf", "foo"])
def test_paths_are_never_hub_ids(models: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(write(models, {"one": {"path": path}}))


def test_all_models_are_told_together(models: Path) -> None:
    said = refused(
        models, {"one": {"path": "foo/bar"}, "two": {"path": "other", "base": "one"}, "good": {"path": "one"}}
    )
    assert [line.split(":")[0] for line in said] == ["models.one", "models.two"]


def test_models_that_do_not_fit_into_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(_: str) -> int:
        return 100 << 20

    monkeypatch.setattr(memory, "available_bytes", free)
    named = {"one": {"path": "one"}, "two": {"path": "one"}}
    assert prepare(load(write(models, named, engine={"kv_cache_gib": 0.05, "device": "cpu"}))).warnings == []
    (warning,) = prepare(load(write(models, named, engine={"kv_cache_gib": 100 / 1024, "device": "cpu"}))).warnings
    assert "under load the models may not fit" in warning
    (said,) = refused(models, named, engine={"kv_cache_gib": 0.1, "device": "cpu"})
    assert "one 0.00 GiB, two 0.00 GiB of weights and 0.10 GiB of keys and values" in said


@pytest.mark.parametrize(("size", "said"), [(1e30, "1e+30 GiB"), (1e-9, "hold no request"), (float("inf"), "finite")])
def test_key_value_budgets_that_make_no_sense(models: Path, size: float, said: str) -> None:
    result = RUN.invoke(
        app, ["config", "validate", str(write(models, {"one": {"path": "one"}}, engine={"kv_cache_gib": size}))]
    )
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("error:") == 1


def test_a_model_without_an_end_is_warned_about(models: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.hf.eos_token = None
    save_with(tmp_path / "endless", tokenizer, eos_token_id=None)
    result = RUN.invoke(app, ["config", "validate", str(write(tmp_path, {"m": {"path": "endless"}}))])
    assert result.exit_code == 0
    assert "warning: models.m: " in result.stderr
    assert "max_tokens" in result.stderr


def test_models_that_read_something_else_than_they_are_asked_are_warned_about(models: Path, tmp_path: Path) -> None:
    ending, mute = byte_tokenizer(), byte_tokenizer(chat_template="{% for message in messages %}?{% endfor %}")
    ids = [("<|end|>", ending.single_id("<|end|>") or 0)]
    ending.backend.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=ids)
    save_with(tmp_path / "ending", ending)
    save_with(tmp_path / "mute", mute)
    tree = {"ending": {"path": "ending"}, "mute": {"path": "mute"}, "plain": {"path": "mute", "template": "plain"}}
    result = RUN.invoke(app, ["config", "validate", str(write(tmp_path, tree))])
    assert result.exit_code == 0
    told = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 2
    assert "models.ending: its tokenizer sets '<|end|>' behind every text" in told[0]
    assert "models.mute: its chat template shows nothing of what a user says" in told[1]


def test_listing_fails_where_a_model_cannot_be_read(models: Path) -> None:
    named = {"one": {"path": "packed.gguf"}, "lost": {"path": "foo/bar"}}
    result = RUN.invoke(app, ["models", str(write(models, named))])
    assert result.exit_code == 1
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "bfloat16" in rows["one"]
    assert "cannot be read" in rows["lost"]
    assert "error: models.lost: " in result.stderr


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_busy_port_is_told_before_anything_is_loaded(models: Path, taken: int) -> None:
    file = write(models, {"one": {"path": "foo/bar"}})  # would be refused too, later
    result = RUN.invoke(app, ["serve", str(file), "--port", str(taken)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: server.port: 127.0.0.1:{taken} is in use: stop what listens there, or choose another port (--port).\n"
    )


def test_a_server_that_still_loads_holds_its_port() -> None:
    first = bind(ServerConfig(port=0))
    config = ServerConfig(port=first.getsockname()[1])
    with first, pytest.raises(ConfigError, match="is in use"):
        bind(config)
    assert url(config, bind(ServerConfig(port=0))) != ""


def test_connections_that_a_server_left_do_not_keep_the_next_from_its_port() -> None:
    with release(bind(ServerConfig(port=0))) as first:
        first.listen()
        config = ServerConfig(port=first.getsockname()[1])
        client = socket.create_connection(("127.0.0.1", config.port))
        answered, _ = first.accept()
        answered.close()  # the side that closes first is left waiting
        client.close()
    with bind(config) as second:
        assert url(config, second) == f"http://127.0.0.1:{config.port}"


def test_hosts_that_are_not_ours() -> None:
    for host in ("no-such-host.invalid", "192.0.2.1"):
        with pytest.raises(ConfigError, match=r"server\.host: "):
            bind(ServerConfig(host=host, port=0))


def test_a_cuda_device_that_is_not_there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (said,) = refused(models, {"one": {"path": "one", "device": "cuda:1"}})
    assert said == "models.one: device: torch sees 0 CUDA devices here, so there is no 'cuda:1'. Nearest: 'auto'."


def test_a_model_without_attention(models: Path) -> None:
    folder = models / "recurrent"
    folder.mkdir()
    MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=400).save_pretrained(folder)
    for file in (models / "one").iterdir():
        if file.name.startswith(("tokenizer", "model")):
            (folder / file.name).write_bytes(file.read_bytes())
    said = refused(models, {"m": {"path": "recurrent"}, "two": {"path": "nowhere/at-all"}})
    assert "only models with attention are served" in said[0]
    assert [line.split(":")[0] for line in said] == ["models.m", "models.two"]


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 1), ("::", 1), ("", 1), ("10.0.0.1", 1), ("box", 1)],
)
def test_a_public_address_without_keys_is_warned_about(models: Path, host: str, warned: int) -> None:
    assert len(exposed(ServerConfig(host=host))) == warned
    assert exposed(ServerConfig.model_validate({"host": host, "api_keys": ["k"]})) == []
    file = write(models, {"one": {"path": "one"}}, server={"host": host})
    said = RUN.invoke(app, ["config", "validate", str(file)]).stderr
    assert said.count("everybody there is let in") == warned


def test_limits_of_keys_without_keys() -> None:
    (said,) = exposed(ServerConfig(max_tokens_per_minute_per_key=5))
    assert said == "server.max_tokens_per_minute_per_key: without server.api_keys there is no key to count for."


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = RUN.invoke(app, ["config", "show", "demo", "--cache", str(tmp_path / "file" / "inside")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: the demo family cannot be written: {tmp_path / 'file'}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "read"),
    [("bare", "bare"), ("mixed", "bare"), ("one", None), ("asked", "one"), ("templated", None)],
)
def test_names_of_a_policy_that_read_plain_text_are_told(models: Path, target: str, read: str | None) -> None:
    """Whether the file says so, the model has no chat template, or a composition asks for it."""
    tree = {"one": {"path": "one"}, "bare": {"path": "bare", "template": "plain"}, "none": {"path": "bare"}}
    if target != "bare":
        tree["bare"] = {"path": "bare"}
    compositions: dict[str, Any] = {
        "mixed": {"strategy": "contrastive", "base": "one", "amateur": "bare"},
        "asked": {"strategy": "contrastive", "base": {"model": "one", "template": "plain"}, "amateur": "one"},
        "templated": {"strategy": "contrastive", "base": "one", "amateur": "one"},
    }
    policies: dict[str, Any] = {"p": {"default": True, "models": {"writer": target}}}
    file = write(models, tree, compositions=compositions, policies=policies)
    said = RUN.invoke(app, ["config", "validate", str(file)]).stderr
    told = f"policies.p.models: writer reads messages as plain text ({read}): every message is an answer"
    assert (told in said) == (read is not None), said
    policies["p"]["allow"] = {"prefill": True}  # it is said already what that gives away
    file = write(models, tree, compositions=compositions, policies=policies)
    assert "reads messages as plain text" not in RUN.invoke(app, ["config", "validate", str(file)]).stderr
