"""`expert.json`: what the server and people need to know of a trained model that lies beside it.

folder = Path("out/small-chat")  # weights or a PEFT adapter, and the tokenizer
write_bundle(folder, ExpertBundle(name="small-chat", role="expert", objective="sft", ...))
bundle = read_bundle(folder)
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from motet import __version__
from motet.composers.roles import MAX_WEIGHT
from motet.experts.card import model_card
from motet.experts.fingerprints import file_hash, weights_fingerprint
from motet.experts.fingerprints import fingerprint as fingerprint
from motet.experts.roles import role_names

BUNDLE = "expert.json"
CARD = "README.md"
FORMAT = 1
PACKAGES = ("torch", "transformers", "tokenizers", "peft")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Weight = Annotated[FiniteFloat, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]


class BundleError(Exception):
    """An `expert.json` that cannot be used. `problems`: everything that is wrong, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReference(_Frozen):
    """Another model: its path or hub id as the recipe wrote it, and its `weights_fingerprint` where they were at hand.

    An absolute path keeps its last part alone: the training machine's folders are nobody's business. `layers`: only
    so many of its first layers were kept.
    """

    path: Annotated[str, Field(min_length=1)]
    weights: Digest | None = None
    layers: PositiveInt | None = None

    @field_validator("path")
    @classmethod
    def _no_absolute_path(cls, path: str) -> str:
        windows = PureWindowsPath(path)
        if path.startswith(("/", "~")):
            return PurePosixPath(path).name
        return windows.name if windows.drive or path.startswith("\\") else path

    @classmethod
    def of(cls, path: str, folder: Path, layers: int | None = None) -> Self:
        """The model written as `path`, whose weights lie in `folder` (not a folder: a hub id, not fingerprinted)."""
        return cls(path=path, weights=weights_fingerprint(folder) if folder.is_dir() else None, layers=layers)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """Python's version and those of the packages that decide what training computes."""
    found = {"motet": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class ExpertBundle(_Frozen):
    """A model made to be composed.

    `role`: where it stands in a composition of the recommended `strategy` (`weight` and `weight_range`: its
    strength). `partner`: the untuned model that it is set against; `base`: the model that it was trained from.
    `base_family`: experts and partners of one family have one name here. `vocab_size`: one more than the
    tokenizer's largest id (`composers.vocabulary.Vocabulary.size`). `files`: name → SHA-256 of every file of the
    bundle, filled in by `write_bundle`. `data_hash`: over the training data, in whatever way the trainer says.
    """

    format: int = FORMAT
    name: Annotated[str, Field(min_length=1)]
    role: Annotated[str, Field(min_length=1)] = "expert"
    objective: str
    base_family: str | None = None
    partner: ModelReference | None = None
    base: ModelReference | None = None
    tokenizer_fingerprint: Digest
    vocab_size: PositiveInt
    strategy: str | None = None
    weight: Weight | None = None
    weight_range: tuple[Weight, Weight] | None = None
    data_hash: str | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=installed_versions)
    evaluation: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])
    created: str = Field(default_factory=_now)
    files: dict[str, Digest] = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _role_of_strategy(self) -> Self:
        if self.strategy is not None:
            roles = role_names(self.strategy)  # raises ValueError, which pydantic reports
            if self.role not in roles:
                near = get_close_matches(self.role, roles, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{self.role!r} is no role of the strategy {self.strategy!r}.{hint} Roles: {', '.join(roles)}"
                )
        return self

    @model_validator(mode="after")
    def _weight_in_range(self) -> Self:
        if self.weight_range is not None:
            low, high = self.weight_range
            if low > high:
                raise ValueError(f"weight_range [{low}, {high}] ends before it begins")
            if self.weight is not None and not low <= self.weight <= high:
                raise ValueError(f"weight {self.weight} lies outside of weight_range [{low}, {high}]")
        return self

    def recommendation(self) -> dict[str, Any]:
        """What model cards show."""
        return {
            "role": self.role,
            "strategy": self.strategy,
            "weight": self.weight,
            "weight_range": None if self.weight_range is None else list(self.weight_range),
            "partner": None if self.partner is None else self.partner.path,
        }


def write_bundle(folder: Path, bundle: ExpertBundle) -> ExpertBundle:
    """Writes `expert.json` and the model card beside the weights; call it when the folder is otherwise complete.

    Returns:
        The bundle as written, with `files`.

    Raises:
        OSError: the folder cannot be written.
    """
    written = bundle.model_copy(update={"files": hashes(folder)})
    _replace(folder / CARD, model_card(written, is_adapter=(folder / "adapter_config.json").is_file()))
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
