"""The page at `/`: built from its source, small, and walked in a real browser against a server of the demo family."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from motet.server.http.middleware import PAGE_FILES
from tests.end_to_end.conftest import serving

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "clients" / "playground"
BUILT = ROOT / "motet" / "server" / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "a-key-of-this-test"
MAX_BYTES = 150_000  # of the whole page
WALK_SECONDS = 400
AXE = [f"axe finds nothing: {scheme}, {width} wide" for scheme in ("light", "dark") for width in (1200, 375)]
WRITTEN = re.findall(r'^test\("([^"]+)"', (SOURCE / "tests" / "page.test.mjs").read_text("utf-8"), re.MULTILINE)
WALKS = [*WRITTEN, *AXE]


def digest() -> str:
    """As `clients/playground/build.mjs` takes it: every file that the bundle is made from, with its name."""
    names = ["build.mjs", "package.json", "tsconfig.json", *(f"src/{file.name}" for file in (SOURCE / "src").iterdir())]
    hashed = hashlib.sha256()
    for name in sorted(names):
        hashed.update(f"{name}\0".encode() + (SOURCE / name).read_bytes() + b"\0")
    return hashed.hexdigest()


@pytest.mark.parametrize("name", ["playground.js", "style.css"])
def test_the_committed_build_is_that_of_the_source(name: str) -> None:
    first = (BUILT / name).read_text("utf-8").partition("\n")[0]
    assert digest() in first, "run `npm install && npm run build` in clients/playground"


def test_copied_files_are_those_of_the_source() -> None:
    for name in ("index.html", "icon.svg"):
        assert (BUILT / name).read_bytes() == (SOURCE / "src" / name).read_bytes()


def test_the_page_is_its_files_and_small() -> None:
    files = list(BUILT.iterdir())
    assert {file.name for file in files} == set(PAGE_FILES)
    assert sum(file.stat().st_size for file in files) < MAX_BYTES


def test_the_page_names_no_other_machine() -> None:
    """Addresses in it are names of XML vocabularies and of papers that a person may open."""
    for name in PAGE_FILES:
        addresses = re.findall(r"https?://[\w.-]+", (BUILT / name).read_text("utf-8"))
        assert set(addresses) <= {"http://www.w3.org"}, name


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's source with what its tests need; skips where a machine lacks it."""
    if shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    if browser() is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and CHROMIUM names none")
    folder = tmp_path_factory.mktemp("page") / "motet" / "clients" / "playground"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install the page's tools: {installed.stderr.strip().splitlines()[-1:]}")
    return folder


def browser() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def locked(family: Path) -> Generator[str]:
    with serving(family / "models.yaml", "--dtype", "float32", "--api-key", KEY) as url:
        yield url


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_the_source_is_typed_and_builds_to_what_is_committed(workshop: Path) -> None:
    run("npm", "run", "--silent", "check", cwd=workshop)
    out = workshop.parents[1] / "motet" / "server" / "static"
    out.mkdir(parents=True)
    run("npm", "run", "--silent", "build", cwd=workshop)
    assert {file.name for file in out.iterdir()} == set(PAGE_FILES)
    for name in PAGE_FILES:
        assert (out / name).read_bytes() == (BUILT / name).read_bytes(), name


@pytest.fixture(scope="module")
def walked(workshop: Path, url: str, locked: str) -> dict[str, str]:
    """What each test in the browser said, by its name: all in one browser."""
    command = ["node", "--test", "--test-reporter=tap", "tests/page.test.mjs"]
    environment = {"MOTET_PAGE": url, "MOTET_LOCKED": locked, "MOTET_KEY": KEY, "CHROMIUM": browser() or ""}
    done = subprocess.run(
        command,
        cwd=workshop,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WALK_SECONDS,
        check=False,
    )
    parts = re.split(r"^ *# Subtest: (.+)$", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.timeout(WALK_SECONDS + 60)
@pytest.mark.parametrize("walk", WALKS)
def test_in_a_browser(walk: str, walked: dict[str, str]) -> None:
    assert walked, "no test ran in the browser"
    said = next(text for name, text in walked.items() if name.startswith(walk))
    assert re.search(r"^ *ok \d+", said, re.MULTILINE), said
