"""`expert.json`: what the server and people need to know of a trained model that lies beside it.

folder = Path("out/small-chat")  # weights or a PEFT adapter, and the tokenizer
write_bundle(folder, ExpertBundle(name="small-chat", role="expert", objective="sft", ...))
bundle = read_bundle(folder)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from motet.experts.card import model_card
from motet.experts.fingerprints import file_hash
from motet.experts.fingerprints import fingerprint as fingerprint
from motet.experts.schema import FORMAT, ExpertBundle
from motet.experts.schema import ModelReference as ModelReference
from motet.models.files import is_adapter

BUNDLE = "expert.json"
CARD = "README.md"


class BundleError(Exception):
    """An `expert.json` that cannot be used. `problems`: everything that is wrong, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def write_bundle(folder: Path, bundle: ExpertBundle) -> ExpertBundle:
    """Writes `expert.json` and the model card beside the weights; call it when the folder is otherwise complete.

    Returns:
        The bundle as written, with `files`.

    Raises:
        OSError: the folder cannot be written.
    """
    written = bundle.model_copy(update={"files": hashes(folder)})
    _replace(folder / CARD, model_card(written, is_adapter=is_adapter(folder)))
    _replace(folder / BUNDLE, json.dumps(written.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    return written


def hashes(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of the files that make the model: not logs, cards or what lies in folders below."""
    kinds = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in kinds)
    return {file.name: file_hash(file) for file in files if file.name != BUNDLE}


def _replace(file: Path, text: str) -> None:
    """All of the text or the file as it was."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def read_bundle(folder: Path) -> ExpertBundle | None:
    """The bundle of a model folder, None where it has none.

    Raises:
        BundleError: not readable, of a newer format, or wrong; all problems together.
    """
    file = folder / BUNDLE
    if not file.is_file():
        return None
    tree = _read(file)
    written = tree.get("format")
    if isinstance(written, int) and written > FORMAT:
        message = f"{file} has format {written}, this version reads formats up to {FORMAT}: update motet"
        raise BundleError([message])
    try:
        return ExpertBundle.model_validate(tree)
    except ValidationError as error:
        raise BundleError([_sentence(file, problem["loc"], problem["msg"]) for problem in error.errors()]) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        tree: Any = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError([f"{file} is not readable: {error}"]) from error
    if not isinstance(tree, dict):
        raise BundleError([f"{file}: an object is expected"])
    return cast("dict[str, Any]", tree)


def _sentence(file: Path, loc: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, loc))
    return f"{file}: {where + ': ' if where else ''}{message.removeprefix('Value error, ')}"
