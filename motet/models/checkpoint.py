"""A checkpoint, whatever it lies in (a folder, a GGUF file, a hub id), read through transformers.

Code that a checkpoint brings along is never run, and nothing is asked on standard input.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motet.models import gguf, hub
from motet.models.files import CONFIG

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


KEYS_SHOWN = 5
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json")  # beside the names that a tokenizer's class knows


class OwnCodeError(ValueError):
    """The checkpoint can only be read by code that it brings along."""


def local(path: str, revision: str | None = None) -> Path:
    """The folder or GGUF file on this machine: of a hub id the snapshot in the hub's cache, without its weights.

    Raises:
        HubError: a hub id that is not to be had.
    """
    found = Path(path)
    return found if found.exists() or not hub.is_hub_id(path) else hub.snapshot(path, revision)


def read_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """Raises OSError, ValueError: it cannot be read, is of an unknown architecture or no text model, or needs code of
    its own."""
    place = local(path, revision)
    if gguf.is_gguf(place):
        return cast("PreTrainedConfig", gguf.read_config(place))
    file = place / CONFIG
    state = file.stat() if file.is_file() else None
    stamp = (0, 0) if state is None else (state.st_size, state.st_mtime_ns)
    return deepcopy(_read_config(path, place, stamp))


@lru_cache(maxsize=64)
def _read_config(path: str, place: Path, stamp: tuple[int, int]) -> PreTrainedConfig:
    """Read once for each state of the file: whoever checks a model asks for it several times."""
    from transformers import AutoConfig

    config = cast("PreTrainedConfig", native(path, cast(Any, AutoConfig).from_pretrained, place))
    require_text_model(config)
    return config


def require_text_model(config: PreTrainedConfig) -> None:
    """Raises ValueError: no causal language model over text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder:
        return
    kind = "no causal language model"
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif config.get_text_config() is not config:
        kind = "a model of text and other media"
    name = (config.architectures or [type(config).__name__])[0]
    raise ValueError(f"{name} is {kind}: only causal language models over text are taken")


def read_generation_config(path: str, revision: str | None = None) -> GenerationConfig | None:
    """What the checkpoint says about generation, None where it says nothing."""
    from transformers import GenerationConfig

    place = local(path, revision)
    if gguf.is_gguf(place):
        return cast("GenerationConfig", gguf.read_generation_config(place))
    if not (place / "generation_config.json").is_file():
        return None
    return cast("GenerationConfig", cast(Any, GenerationConfig).from_pretrained(place))


def read_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Raises OSError, ValueError (a folder without a vocabulary, of which transformers makes an empty tokenizer), and
    whatever its parsers raise."""
    from transformers import AutoTokenizer

    place = local(path, revision)
    if gguf.is_gguf(place):
        return cast("PreTrainedTokenizerBase", gguf.read_tokenizer(place))
    tokenizer = cast("PreTrainedTokenizerBase", native(path, cast(Any, AutoTokenizer).from_pretrained, place))
    names = sorted({*VOCABULARIES, *map(str, tokenizer.vocab_files_names.values())})
    if not any((place / name).is_file() for name in names):
        raise ValueError(f"{place} holds no tokenizer ({', '.join(names)})")
    return tokenizer


def load_weights(path: str, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """The causal language model; transformers alone would make up weights that are missing.

    Args:
        options: of transformers' `from_pretrained`.

    Raises:
        ValueError: tensors that the checkpoint lacks or misshapes.
        OSError, and whatever transformers' readers raise.
    """
    model, report = _load_weights(path, revision, **options)
    lost = sorted(report.get("missing_keys", ())) + [str(key) for key in report.get("mismatched_keys", ())]
    if lost:
        shown = ", ".join(lost[:KEYS_SHOWN]) + (f" and {len(lost) - KEYS_SHOWN} more" if len(lost) > KEYS_SHOWN else "")
        raise ValueError(f"the checkpoint {path!r} lacks or misshapes {shown}")
    return model


def _load_weights(path: str, revision: str | None, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    place = Path(path)
    if not place.exists() and hub.is_hub_id(path):
        place = hub.with_weights(path, revision)
    if gguf.is_gguf(place):
        return gguf.load_weights(place, **options)
    read_config(str(place))  # which refuses what is no text model shortly, before its weights are read
    read = cast(Any, AutoModelForCausalLM).from_pretrained
    loaded = native(path, read, place, output_loading_info=True, **options)
    return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)


def native(path: str, read: Any, place: Path, **options: Any) -> Any:
    """What `read`, a `from_pretrained` of transformers, makes of a folder by transformers' own code.

    Raises:
        ValueError, OSError: it cannot be read, or only by code of its own (`OwnCodeError`).
    """
    try:
        return read(place, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise OwnCodeError(
                f"{path} can only be read by Python code that it brings along (auto_map), which is never run here: "
                "architectures and tokenizers are transformers' own"
            ) from error
        raise
    except (AttributeError, KeyError, TypeError) as error:  # a field that is missing or of another type
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
