"""The command line: instant help, clear refusals, the listings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import motet
from motet.cli import app
from motet.operator.file import Configuration
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

RUN = CliRunner()


def write(folder: Path, text: str) -> str:
    file = folder / "models.yaml"
    file.write_text(text)
    return str(file)


def test_parsing_imports_neither_torch_nor_transformers() -> None:
    """`--help` has to be instant; torch alone takes seconds."""
    code = "import sys; from motet.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = result.stdout.split()
    assert "typer" in loaded
    assert not {"torch", "transformers", "pydantic", "fastapi"} & set(loaded)


def test_the_version_is_that_of_the_package() -> None:
    result = RUN.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"motet {motet.__version__}\n")


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = RUN.invoke(app, ["--show-completion", "bash"], prog_name="motet")
    assert shown.exit_code == 0
    assert "complete -o default -F _motet_completion motet" in shown.output
    environment = {"_MOTET_COMPLETE": "complete_bash", "COMP_WORDS": "motet se", "COMP_CWORD": "1"}
    assert RUN.invoke(app, [], prog_name="motet", env=environment).output.split() == ["serve"]


@pytest.mark.parametrize("command", ["serve", "models", "config", "demo"])
def test_every_command_is_listed(command: str) -> None:
    assert command in RUN.invoke(app, ["--help"]).output
    assert RUN.invoke(app, [command, "--help"]).exit_code == 0


def test_validate_reports_every_problem(tmp_path: Path) -> None:
    file = write(tmp_path, "models: {a: {path: ./none}, b: {pth: x}}\nserver: {prot: 1}")
    result = RUN.invoke(app, ["config", "validate", file])
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 4
    for said in ("models.a.path", "models.b.path", "Did you mean 'path'", "Did you mean 'port'"):
        assert said in result.stderr


def test_validate_good_file(tmp_path: Path) -> None:
    save_with(tmp_path / "model", byte_tokenizer())
    file = write(tmp_path, "models: {a: {path: model}}")
    result = RUN.invoke(app, ["config", "validate", file])
    assert result.exit_code == 0
    assert "1 model and 0 compositions" in result.output


def test_show_tells_where_values_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_LOG__LEVEL", "debug")
    file = write(tmp_path, "models: {a: {path: org/model}}\nserver: {api_keys: [hidden-key]}")
    result = RUN.invoke(app, ["config", "show", file])
    rows = [line.split() for line in result.output.splitlines()]
    assert any(row[:1] == ["log.level"] and row[-1] == "environment" for row in rows)
    assert any(row[:1] == ["models.a.path"] and row[-1] == "file" for row in rows)
    assert "hidden-key" not in result.output


def test_serve_refuses_a_wrong_flag_and_a_missing_file(tmp_path: Path) -> None:
    file = write(tmp_path, "models: {a: {path: org/model}}")
    wrong = RUN.invoke(app, ["serve", file, "--device", "gpu"])
    missing = RUN.invoke(app, ["serve", str(tmp_path / "none.yaml")])
    assert wrong.exit_code == missing.exit_code == 1
    assert "engine.device" in wrong.stderr
    assert "No such file" in missing.stderr


def test_serve_takes_the_origins_of_web_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Configuration] = []

    def nothing(*_given: object, **_named: object) -> None:
        """In the place of what would turn this process's logs."""

    monkeypatch.setattr("motet.cli.serve._serve", served.append)
    monkeypatch.setattr("motet.server.http.logs.configure", nothing)
    file = write(tmp_path, "models: {a: {path: org/model}}\nserver: {cors_origins: [https://file.example]}")
    flags = ["--cors-origin", "https://one.example", "--cors-origin", "https://two.example"]
    for given in (flags, []):
        assert RUN.invoke(app, ["serve", file, *given]).exit_code == 0
    assert served[0].settings.server.cors_origins == ("https://one.example", "https://two.example")
    assert served[1].settings.server.cors_origins == ("https://file.example",)


def test_the_demo_is_a_file_to_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from motet.demo import family

    save_with(tmp_path / "model", byte_tokenizer())
    write(tmp_path, "models: {a: {path: model}}")

    def built(*_: object) -> Path:
        return tmp_path

    monkeypatch.setattr(family, "build_family", built)
    for command in (["config", "show"], ["config", "validate"], ["models"]):
        result = RUN.invoke(app, [*command, "demo", "--seed", "3"])
        assert result.exit_code == 0, result.stderr
