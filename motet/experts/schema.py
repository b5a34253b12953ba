"""What `expert.json` says: the role, the strength and the origin of a model that was made to be composed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, field_validator, model_validator

from motet import __version__
from motet.composers.roles import MAX_PARTS, MAX_WEIGHT, ModelName
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.roles import role_names
from motet.models.info import HeadKind
from motet.settings import nearest

if TYPE_CHECKING:
    from motet.models.heads import ReadingHead

FORMAT = 1
PACKAGES = ("torch", "transformers", "tokenizers", "peft")
MAX_CLUSTERS = MAX_PARTS  # a composition has no more adapters
MAX_TOP, MAX_WIDTH, MAX_BLOCKS = 1024, 8192, 32  # of a router that is read before anybody knows who wrote it

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Weight = Annotated[FiniteFloat, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]


ClusterNames = Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=MAX_CLUSTERS)]


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


class HeadSpec(_Frozen):
    """A head in `models.files.HEAD` beside the weights, which some strategies ask of their base. A gate and a router
    say a share; a similarity gives each of its `clusters` one; the others say a number between `least` and `most`,
    which enclose 1. A router's `top`, `width` and `blocks` are those of `models.heads.RouterHead`, its `threshold` is
    where it routes unless a request says so."""

    kind: HeadKind
    least: Annotated[FiniteFloat, Field(ge=0)] | None = None
    most: FiniteFloat | None = None
    top: Annotated[PositiveInt, Field(le=MAX_TOP)] | None = None
    width: Annotated[PositiveInt, Field(le=MAX_WIDTH)] | None = None
    blocks: Annotated[PositiveInt, Field(le=MAX_BLOCKS)] | None = None
    threshold: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    clusters: ClusterNames | None = None

    @model_validator(mode="after")
    def _of_a_similarity(self) -> Self:
        if (self.kind == "similarity") != (self.clusters is not None):
            raise ValueError("a similarity has clusters, and no other head has")
        if self.clusters is not None and len(set(self.clusters)) < len(self.clusters):
            raise ValueError(f"clusters must have names of their own, got {', '.join(self.clusters)}")
        return self

    @model_validator(mode="after")
    def _of_a_router(self) -> Self:
        given = {name: getattr(self, name) for name in ("top", "width", "blocks", "threshold")}
        if self.kind == "router" and None in given.values():
            missing = ", ".join(name for name, value in given.items() if value is None)
            raise ValueError(f"a router has top, width, blocks and threshold; missing: {missing}")
        unlike = [name for name, value in given.items() if value is not None]
        if self.kind != "router" and unlike:
            raise ValueError(f"a {self.kind} has no {', '.join(unlike)}, as a router has")
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.kind in ("gate", "router", "similarity"):
            if self.least is not None or self.most is not None:
                raise ValueError(f"a {self.kind} has no least and most: its shares lie between 0 and 1")
        elif self.least is None or self.most is None or not self.least < 1 < self.most:
            raise ValueError(f"least and most of a {self.kind} must enclose 1, got {self.least} and {self.most}")
        elif self.kind == "temperature" and self.least == 0:
            raise ValueError("least of a temperature must be above 0")
        return self

    def made(self, hidden_size: int) -> ReadingHead:
        """The head before its weights are read, for hidden states of this width."""
        from motet.models.heads import GateHead, RouterHead, ScaleHead, SimilarityHead  # torch

        if self.clusters is not None:
            return SimilarityHead(hidden_size, self.clusters)
        if self.top is not None and self.width is not None and self.blocks is not None and self.threshold is not None:
            return RouterHead(hidden_size, self.top, self.width, self.blocks, self.threshold)
        if self.least is None or self.most is None:
            return GateHead(hidden_size)
        return ScaleHead(hidden_size, self.least, self.most)


class ExpertBundle(_Frozen):
    """A model made to be composed.

    `role`: where it stands in a composition of the recommended `strategy` (`weight` and `weight_range`: its
    strength). `partner`: the untuned model that it is set against; `base`: the model that it was trained from.
    `base_family`: experts and partners of one family have one name here. `vocab_size`: one more than the
    tokenizer's largest id (`composers.vocabulary.Vocabulary.size`). `files`: name → SHA-256 of every file of the
    bundle, filled in by `write_bundle`. `head`: what was trained beside it and is served with it. `virtual_tokens`: of
    a soft prompt, which stands in front of its base; None: it is none. `data_hash`: over the training data, in whatever
    way the trainer says.
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
    head: HeadSpec | None = None
    virtual_tokens: PositiveInt | None = None
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
                hint = nearest(self.role, roles)
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
