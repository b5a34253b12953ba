"""What README.md, docs/ and motet-client's README show is run, page by page, in its order and in one folder.

- `motet …` runs in this process; `motet serve FILE` goes as far as the port: a server of the demo family runs already.
- `curl …` is sent to that server, and must be answered with a 200, or with the status of `<!-- answers 400 -->`.
- Python is executed; a block with a title is written to the file of that name.
- YAML is read by the reader of operator's files, of training recipes or of evaluation recipes.
- JSON is a composition, which the server is asked for, or, behind `<!-- answer -->`, a part of the last answer.
- A block behind `<!-- not run: why -->` is only read: its shell, its JSON in requests, its YAML.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from motet.cli import app
from motet.composers.spec import parse_composition
from motet.demo.family import family_folder
from motet.evaluation.recipe import read_recipe as read_evaluation
from motet.operator.file import load
from motet.settings import read_yaml
from motet.training.run.recipe_file import read_recipe as read_training
from tests.end_to_end.conftest import serving

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "clients" / "python" / "README.md"]
SHOWN = "http://127.0.0.1:8000"
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|answers?)(?:: | )?(?P<why>[^>]*?) ?-->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
QUOTED_OR_COMMENT = re.compile(r"""(?P<quoted>'[^']*'|"[^"]*")|(?:^|(?<=\s))#.*$""", re.MULTILINE)
COMMAND = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\n'"])+""")
# models of the demo family in the place of checkpoints that a hub would have to send
STAND_INS = {
    "meta-llama/Llama-2-70b-hf": "large",
    "meta-llama/Llama-2-7b-hf": "small",
    "meta-llama/Llama-2-7b-chat-hf": "small-chat",
    "./experts/llama-7b-chat": "small-chat",
    "meta-llama/Llama-3.1-8B": "large",
    "meta-llama/Llama-3.2-1B": "small",
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": "large-chat",
    "Qwen/Qwen2.5-1.5B-Instruct": "large-chat",
    "Qwen/Qwen2.5-0.5B-Instruct": "small-chat",
    "Qwen/Qwen2.5-1.5B": "large",
    "Qwen/Qwen2.5-0.5B": "small",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark`: `not run`, `answer` or `answers`, with its reason or status in `why`."""

    language: str
    text: str
    title: str | None
    mark: str | None
    why: str


def blocks(page: Path) -> list[Block]:
    return [
        Block(m["language"], m["text"], m["title"], m["mark"], m["why"] or "")
        for m in BLOCK.finditer(page.read_text("utf-8"))
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, comments left out; texts in quotes may go over several lines."""
    bare = QUOTED_OR_COMMENT.sub(lambda found: found["quoted"] or "", text.replace("\\\n", " "))
    for line in COMMAND.findall(bare):
        if words := shlex.split(line):
            yield words


class Reader:
    """Runs one page's blocks, one after the other."""

    def __init__(self, folder: Path, family: Path, url: str) -> None:
        self.folder = folder
        self.family = family
        self.url = url
        self.answer: Any = None
        self.names: dict[str, Any] = {"__name__": "snippet"}

    def read(self, block: Block) -> None:
        text = self._here(block.text)
        if block.title is not None:
            (self.folder / block.title).write_text(text)
        match block.language:
            case "bash":
                self._shell(text, status=int(block.why) if block.mark == "answers" else 200)
            case "python":
                exec(compile(text, "snippet", "exec"), self.names)
            case "yaml":
                self._yaml(text)
            case "json":
                self._json(json.loads(text), is_answer=block.mark == "answer")
            case _:
                assert not block.language, f"nothing here runs {block.language}"

    def _here(self, text: str) -> str:
        for shown, model in STAND_INS.items():
            text = re.sub(rf"{re.escape(shown)}(?![\w.-])", str(self.family / model), text)
        return text.replace(SHOWN, self.url)

    def _shell(self, text: str, status: int) -> None:
        for program, *words in commands(text):
            match program:
                case "motet":
                    run_motet(words)
                case "curl":
                    self.answer = curl(words, status)
                case _:
                    raise AssertionError(f"{program} is neither motet nor curl: mark the block `not run` with a reason")

    def _yaml(self, text: str) -> None:
        content = read_yaml(text)
        file = self.folder / "snippet.yaml"
        if "objective" in content:
            file.write_text(text)
            read_training(str(file))
        elif "tasks" in content:
            file.write_text(text)
            read_evaluation(file)
        else:
            models = {name: {"path": str(self.family / "small")} for name in _members(content)}
            file.write_text(yaml.safe_dump({"models": models, **content}))
            load(file)

    def _json(self, shown: Any, *, is_answer: bool) -> None:
        if is_answer:
            assert_part(shown, self.answer, "answer")
            return
        parse_composition(shown)
        named = {} if "base" in shown or "members" in shown else {"model": "large"}
        body = {**named, "prompt": "The river", "max_tokens": 2, "composition": shown}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 200, answer.text


def _members(content: dict[str, Any]) -> list[str]:
    """The models that an excerpt of an operator's file names in its families."""
    families = content.get("engine", {}).get("families", {}).values()
    listed: list[Any] = [one["models"] if isinstance(one, dict) else one for one in families]
    return [str(name) for names in listed for name in names] or ["any"]


def assert_part(shown: Any, real: Any, where: str) -> None:
    """What is shown stands in the real answer: every name, and values of the same kind."""
    assert type(real) is type(shown), f"{where}: {real!r} is no {type(shown).__name__}"
    if isinstance(shown, dict):
        for name, value in cast("dict[str, Any]", shown).items():
            assert name in real, f"{where}.{name} is not in the answer: {sorted(real)}"
            assert_part(value, real[name], f"{where}.{name}")
    elif isinstance(shown, list):
        for i, value in enumerate(cast("list[Any]", shown)):
            assert i < len(real), f"{where}: has {len(real)} entries"
            assert_part(value, real[i], f"{where}.{i}")


def run_motet(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"motet {shlex.join(words)}: {result.output}"


class Curl(argparse.ArgumentParser):
    """The options of curl that the pages use."""

    def __init__(self) -> None:
        super().__init__("curl", add_help=False)
        self.add_argument("url")
        self.add_argument("-X", dest="method")
        self.add_argument("-H", dest="headers", action="append", default=[])
        self.add_argument("-d", dest="data")
        self.add_argument("-i", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise AssertionError(f"curl: {message}")


def curl(words: list[str], status: int = 200) -> Any:
    """The answer's JSON, or its text."""
    asked = Curl().parse_args(words)
    headers = dict(header.split(": ", 1) for header in asked.headers)
    method = asked.method or ("POST" if asked.data is not None else "GET")
    answer = httpx.request(method, asked.url, headers=headers, content=asked.data, timeout=30)
    assert answer.status_code == status, f"{asked.url}: {answer.status_code} {answer.text}"
    return answer.json() if answer.headers["content-type"] == "application/json" else answer.text


@pytest.fixture(scope="module")
def server(family: Path) -> Generator[str]:
    """The demo family, with a page of another origin let in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTET_SERVER__CORS_ORIGINS", "https://app.example")
        with serving(family / "models.yaml", "--dtype", "float32") as base:
            yield base


def nothing(*_given: Any, **_named: Any) -> None:
    """In the place of what would serve, and of what would turn this process's logs."""


@pytest.fixture
def reader(family: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """`demo` is the tests' family; `serve` does everything but serve."""
    family_folder(0, tmp_path / "cache").parent.mkdir()
    family_folder(0, tmp_path / "cache").symlink_to(family)
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("motet.server.http.logs.configure", nothing)
    monkeypatch.setattr("motet.cli.serve._serve", nothing)
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Reader(folder, family, server)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        if block.mark != "not run":
            reader.read(block)


def test_every_block_is_seen() -> None:
    """A fence that the expression above does not read would be a snippet that nobody runs."""
    for page in PAGES:
        assert len(re.findall(r"^\s*```", page.read_text("utf-8"), re.MULTILINE)) == 2 * len(blocks(page)), page


def test_what_is_not_run_is_read() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.mark == "not run":
                assert block.why, f"{page.name}: say why"
                read_only(block)


def read_only(block: Block) -> None:
    match block.language:
        case "bash":
            if (bash := shutil.which("bash")) is not None:
                subprocess.run([bash, "-n"], input=block.text, text=True, check=True)
            for words in commands(block.text):
                if words[0] == "curl":
                    json.loads(Curl().parse_args(words[1:]).data or "null")
        case "python":
            ast.parse(block.text)
        case "yaml":
            read_yaml(block.text)
        case "json":
            json.loads(block.text)
        case language:
            raise AssertionError(f"{language} needs no mark")
