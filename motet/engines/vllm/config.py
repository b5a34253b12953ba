"""The composite's configuration: which checkpoints it holds, and what vLLM must know to size its buffers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PretrainedConfig

from motet.models.checkpoint import read_config

MODEL_TYPE = "motet_composite"
ARCHITECTURE = "MotetCompositeForCausalLM"
# of the first member, which stands for the composite where vLLM asks for shapes; members bring their own
MIRRORED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)

_known: dict[str, None] = {}
_widths: set[int] = set()


class CompositeConfig(PretrainedConfig):
    """`members`: name → {"path", "revision", "tokenizer" ([path, revision] where it lies elsewhere)}, the first of them
    the default base; `vocab_size` is the shared width; `skips`: a step runs only the members that its requests read,
    and whoever sends requests salts their prefixes by those."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        members: Mapping[str, Mapping[str, Any]] | None = None,
        ends: Sequence[int] = (),
        skips: bool = False,
        **rest: Any,
    ) -> None:
        self.members = {name: dict(member) for name, member in (members or {}).items()}
        self.ends = list(ends)
        self.skips = skips
        _known.update(dict.fromkeys(self.members))
        if "vocab_size" in rest:
            _widths.add(int(rest["vocab_size"]))
        super().__init__(**rest)


def known_members() -> list[str]:
    """Names in the composites that this process has read: what a front end may check a request against."""
    return list(_known)


def known_width() -> int | None:
    """The narrowest vocabulary of these composites; None where none was read."""
    return min(_widths, default=None)


def distinct(members: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, str | None]], dict[str, int]]:
    """The distinct (path, revision), and which of them each name is: one set of weights may have many names."""
    sources: list[tuple[str, str | None]] = []
    numbers: dict[str, int] = {}
    for name, member in members.items():
        source = (str(member["path"]), member.get("revision"))
        if source not in sources:
            sources.append(source)
        numbers[name] = sources.index(source)
    return sources, numbers


def composite_data(
    members: Mapping[str, Mapping[str, Any]],
    *,
    vocab_size: int,
    max_model_len: int,
    ends: Sequence[int],
    dtype: str,
    skips: bool = False,
) -> dict[str, Any]:
    """What stands in the composite's config.json."""
    sources, _ = distinct(members)
    path, revision = sources[0]
    primary = cast(Any, read_config(path, revision)).get_text_config()
    mirrored = {name: value for name in MIRRORED if (value := getattr(primary, name, None)) is not None}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "members": {name: dict(member) for name, member in members.items()},
        "ends": list(ends),
        "skips": skips,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_model_len,
        "tie_word_embeddings": False,
        "dtype": dtype,
        **mirrored,
    }


def write_composite(folder: Path, data: Mapping[str, Any]) -> Path:
    """Writes config.json; nothing of the members is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data, indent=1) + "\n")
    return folder


def cached_composite(data: Mapping[str, Any], cache: Path) -> Path:
    """The composite in a cache folder, under a name that follows from its content."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
    return write_composite(cache / "composites" / digest, data)
