"""Hub ids: asked for once and quietly; what the hub's local cache holds is used where the hub cannot be reached."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from motet.models import files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # what is there of the first kind is preferred
NOT_WEIGHTS = ("original/*", "consolidated*", "*/*")  # the same weights in other people's formats
TIMEOUT_S = 5.0


class HubError(ValueError):
    """No model of that name can be had; the message says why in one sentence."""


def is_hub_id(path: str) -> bool:
    """Whether a path that is no file on this machine can be a hub id: `./x`, `../x`, `/x` and `~/x` never are."""
    return HUB_ID.fullmatch(path) is not None and not path.endswith(".gguf")


@lru_cache
def snapshot(name: str, revision: str | None = None) -> Path:
    """The folder of the hub's local cache that holds a model's small files: configuration, tokenizer, indices.

    Raises:
        HubError: the hub has no such model, does not give it, or cannot be reached and the cache does not hold it.
    """
    cached = _cached(name, revision)
    return _download(name, revision, files.SMALL_FILES) if cached is None else cached


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot in the cache where there is one: what was downloaded is not looked up again."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(name, file, revision=revision) for file in (files.CONFIG, files.ADAPTER_CONFIG))
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


@lru_cache
def with_weights(name: str, revision: str | None = None) -> Path:
    """The same folder once the weights are there too. Raises HubError as `snapshot` does."""
    folder = snapshot(name, revision)
    if not list(files.problems(folder)):
        return folder
    for pattern in WEIGHTS:
        # of the same commit as what was read before
        folder = _download(name, folder.name, (*files.SMALL_FILES, pattern))
        if any(folder.glob(pattern)):
            break
    return folder


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = cast(Any, huggingface_hub).snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(NOT_WEIGHTS),
            etag_timeout=TIMEOUT_S,
        )
    except LocalEntryNotFoundError as error:
        raise HubError(f"the hub's local cache does not hold {name!r}, and {_unreachable()}") from error
    except HfHubHTTPError as error:
        reason = (error.server_message or str(error)).strip().splitlines()[0]
        raise HubError(f"the hub does not give {name!r}: {reason.rstrip('.')}") from error
    return Path(found)


def _unreachable() -> str:
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE forbids asking the hub"
    return f"the hub ({ENDPOINT}) cannot be reached"
