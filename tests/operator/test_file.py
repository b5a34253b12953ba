"""The operator's file: precedence, origins, and all problems reported together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from motet.operator.file import ConfigError, load

GOOD: dict[str, Any] = {
    "models": {"large": {"path": "large"}, "small": {"path": "small", "template": "plain"}},
    "compositions": {"diff": {"strategy": "contrastive", "base": "large", "amateur": "small"}},
    "server": {"port": 8001},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def write(folder: Path, tree: Any) -> Path:
    file = folder / "models.yaml"
    file.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return file


def problems(folder: Path, tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        load(write(folder, tree))
    return refusal.value.problems


def test_a_good_file(folder: Path) -> None:
    configuration = load(write(folder, GOOD))
    assert list(configuration.settings.models) == ["large", "small"]
    assert configuration.compositions["diff"].strategy == "contrastive"
    assert configuration.settings.server.host == "127.0.0.1"


def test_flag_over_environment_over_file_over_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(folder, GOOD | {"engine": {"kv_cache_gib": 2}})
    monkeypatch.setenv("MOTET_SERVER__PORT", "8002")
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", "one,two")
    monkeypatch.setenv("MOTET_ENGINE__KV_CACHE_GIB", "3")
    configuration = load(file, {"server": {"port": 8003}})
    settings = configuration.settings
    assert (settings.server.port, settings.engine.kv_cache_gib) == (8003, 3)
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["one", "two"]
    origins = {name: (value, origin) for name, value, origin in configuration.origins()}
    assert origins["server.port"] == (8003, "flag")
    assert origins["engine.kv_cache_gib"] == (3.0, "environment")
    assert origins["models.small.template"] == ("plain", "file")
    assert origins["log.level"] == ("info", "default")


def test_secrets_are_masked(folder: Path) -> None:
    configuration = load(write(folder, GOOD | {"server": {"api_keys": ["hush-hush"]}}))
    assert "hush-hush" not in str(list(configuration.origins()))
    assert "hush-hush" not in str(configuration.settings)


def test_keys_as_json_in_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", '["a,b"]')
    settings = load(write(folder, GOOD)).settings
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["a,b"]


def test_all_problems_together(folder: Path) -> None:
    found = problems(
        folder,
        {
            "models": {
                "large": {"path": "large", "tempalte": "chat"},
                "gone": {"path": "smal"},
                "odd": {"path": "small", "dtype": "float8"},
                "none": {},
            },
            "compositions": {
                "large": {"strategy": "contrastive", "base": "large", "amateur": "odd"},
                "lost": {"strategy": "contrastive", "base": "large", "amateur": "od"},
                "wrong": {"strategy": "contrastiv", "base": "large"},
                "baseless": {"strategy": "contrastive", "amateur": "odd"},
            },
            "server": {"prot": 1, "port": 99999},
            "sever": {},
        },
    )
    text = "\n".join(found)
    for said in (
        "models.large.tempalte: unknown field. Did you mean 'template'?",
        "models.gone.path",
        "Did you mean 'small'?",
        "models.odd.dtype",
        "models.none.path: Field required",
        "compositions.large: a model has the same name",
        "compositions.lost",
        "did you mean 'odd'",
        "compositions.wrong",
        "did you mean 'contrastive'",
        "compositions.baseless",
        "server.prot: unknown field. Did you mean 'port'?",
        "server.port",
        "sever: unknown field. Did you mean 'server'?",
    ):
        assert said in text
    assert len(found) == 11


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "not readable as YAML"),
        ("- a", "a mapping with 'models' is expected"),
        ("", "a mapping with 'models' is expected"),
        ("server: {port: 1}", "models: Field required"),
        ("models: {}", "models: Dictionary should have at least 1 item"),
        ("models: 3", "models: Input should be a valid dictionary"),
        ("models: {a: {path: large}, a: {path: small}}", "the name 'a' is given twice"),
        ("models: {a: {path: large}}\ncompositions: {c: 1}", "compositions.c"),
        ("models: {a: {path: .}}", "has no config.json"),
        (
            "models: {a: {path: large, quantize: int44}}",
            "models.a.quantize: 'int44' is not allowed. Did you mean 'int4'? Allowed: int8, int4.",
        ),
        ("models: {a: {path: large, quantize: 4}}", "models.a.quantize: 4 is not allowed."),
    ],
)
def test_files_that_are_no_configuration(folder: Path, text: str, said: str) -> None:
    assert said in "\n".join(problems(folder, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_hub_ids_are_not_looked_up(folder: Path) -> None:
    configuration = load(write(folder, {"models": {"llama": {"path": "meta-llama/Llama-2-7b-hf"}}}))
    assert configuration.settings.models["llama"].path == "meta-llama/Llama-2-7b-hf"


def test_unreadable_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_SERVER__PORT", "many")
    assert "server.port" in "\n".join(problems(folder, GOOD))
    monkeypatch.setenv("MOTET_MODELS", "{")
    assert "environment" in "\n".join(problems(folder, GOOD))


def test_a_misspelt_section_in_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_SERVR__PORT", "8002")
    monkeypatch.setenv("MOTET_SERVICE_HOST", "10.0.0.1")  # as Kubernetes names a service called motet
    (said,) = problems(folder, GOOD)
    assert said == "environment: MOTET_SERVR__PORT names no setting. Did you mean MOTET_SERVER__PORT?"


@pytest.mark.parametrize(("variable", "meant"), [("SERVER_PORT", "SERVER__PORT"), ("ENGINE_DTYPE", "ENGINE__DTYPE")])
def test_a_setting_with_one_underscore(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(f"MOTET_{variable}", "8002")
    (said,) = problems(folder, GOOD)
    assert said == f"environment: MOTET_{variable} names no setting. Did you mean MOTET_{meant}?"
    monkeypatch.setenv(f"MOTET_{variable}", "tcp://10.0.0.1:8000")  # as Kubernetes links a service motet-server
    load(write(folder, GOOD))


@pytest.mark.parametrize("written", ["1e-1", '"0.1"'])
def test_numbers_of_compositions(folder: Path, written: str) -> None:
    text = yaml.safe_dump(GOOD).replace("amateur: small", f"amateur: small\n    alpha: {written}")
    assert load(write(folder, text)).compositions["diff"].model_dump()["alpha"] == 0.1


EMPTY = "a key is empty: clients could send it without knowing it"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", EMPTY),
        ("  ", EMPTY),
        ("two words", "other than visible ASCII, or spaces"),
        ("schlüssel", "other than visible ASCII"),
        ("line\nend", "other than visible ASCII"),
        ("sha256:abc", "64 hexadecimal digits"),
        ("sha256:" + "g" * 64, "64 hexadecimal digits"),
    ],
)
def test_keys_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
    (of_file,) = problems(folder, GOOD | {"server": {"api_keys": ["good", key]}})
    assert of_file.startswith("server.api_keys.1: ")
    assert said in of_file
    with pytest.raises(ConfigError, match=r"server\.api_keys\.0: ") as of_flag:
        load(write(folder, GOOD), {"server": {"api_keys": [key]}})
    assert said in str(of_flag.value)
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", json.dumps([key]))
    (of_environment,) = problems(folder, GOOD)
    assert said in of_environment
    if key.strip():
        assert key not in of_file + of_environment


@pytest.mark.parametrize("written", ["", "  ", "[]", "[ ]"])
def test_an_empty_variable_does_not_remove_the_files_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", written)
    (said,) = problems(folder, GOOD | {"server": {"api_keys": ["hush"]}})
    assert said.startswith("server.api_keys: it is empty, which would let everybody in")


def test_an_empty_key_between_commas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_SERVER__API_KEYS", "one,,two")
    assert EMPTY in "\n".join(problems(folder, GOOD))


def test_keys_of_a_file_come_beside_the_others(folder: Path) -> None:
    hashed = "sha256:" + "0a" * 32
    (folder / "keys").write_text(f"# clients\nfrom-file\n\n{hashed}\n")
    configuration = load(write(folder, GOOD | {"server": {"api_keys": ["own"], "api_keys_file": "keys"}}))
    found = [key.get_secret_value() for key in configuration.settings.server.api_keys]
    assert found == ["own", "from-file", hashed]
    assert "from-file" not in str(list(configuration.origins()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"# nobody\n\n", "holds no key: everybody would be let in"),
        (b"good\nsha256:1\n", "line 2: a hashed key is"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_key_files_that_hold_none(folder: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (folder / "keys").write_bytes(content)
    (found,) = problems(folder, GOOD | {"server": {"api_keys_file": "keys"}})
    assert found.startswith("server.api_keys_file: ")
    assert said in found


@pytest.mark.parametrize(("written", "said"), [("nowhere/log", "is no folder"), (".", "cannot be written")])
def test_an_audit_log_that_cannot_be_written(folder: Path, written: str, said: str) -> None:
    (found,) = problems(folder, GOOD | {"server": {"audit_log": written}})
    assert found.startswith("server.audit_log: ")
    assert said in found


def test_what_no_system_takes_as_a_path(folder: Path) -> None:
    found = problems(folder, GOOD | {"models": {"large": {"path": "x" * 300}}})
    assert any(one.startswith("models.large.path: ") and "can be no path" in one for one in found)


def test_digits_without_end(folder: Path) -> None:
    (folder / "models.yaml").write_text(f"models: {{}}\nengine: {{kv_cache_gib: {'1' * 5000}}}\n")
    with pytest.raises(ConfigError, match="a number of 5,000 digits"):
        load(folder / "models.yaml")


def test_examples_of_the_page_name_models_that_there_are(folder: Path) -> None:
    example = {"title": "Look", "model": "prox", "beside": ["large"], "question": "Who?"}
    tree = {
        "models": {"large": {"path": "a"}, "small": {"path": "b"}},
        "compositions": {"proxy": {"strategy": "novelty", "base": "large", "untuned": "small"}},
        "server": {"playground": {"examples": [example]}},
    }
    with pytest.raises(ConfigError) as raised:
        load(write(folder, tree), check_paths=False)
    assert raised.value.problems == ["server.playground.examples.0: unknown model 'prox'. Did you mean 'proxy'?"]
    example["model"] = "proxy"
    assert load(write(folder, tree), check_paths=False).settings.server.playground.examples[0].beside == ("large",)
