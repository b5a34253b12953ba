"""GGUF files, llama.cpp's checkpoints, read through transformers: one file holds configuration, tokenizer, chat
template and weights. Quantised weights are dequantised when they are loaded.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import io
import json
import logging
import struct
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

SUFFIX = ".gguf"
TABLES = frozenset(f"tokenizer.ggml.{table}" for table in ("tokens", "scores", "token_type", "merges"))
BEGIN = "tokenizer.ggml.bos_token_id"
ENDS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
# values of general.file_type: what most tensors are stored as; all others are quantised
DTYPE_OF_FILE_TYPE = {0: "float32", 1: "float16", 32: "bfloat16"}
DEQUANTISED = "bfloat16"


class GgufError(ValueError):
    """The file cannot be served; the message says why."""


def is_gguf(path: str | Path) -> bool:
    return Path(path).suffix.lower() == SUFFIX


def problems(file: Path) -> Iterator[str]:
    """What is wrong with a file as far as its header and its size show it; no weights are read."""
    try:
        metadata = _metadata(file)
    except GgufError as error:
        yield str(error)
        return
    parts = int(metadata.get("split.count", 1))
    if parts > 1:
        yield (
            f"{file} is one of {parts} parts of a split file: join them with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART OUT.gguf`"
        )
        return
    kind = metadata.get("general.type", "model")
    if kind != "model":
        yield f"{file} is no model: it says of itself that it is of type {kind!r}"
        return
    promised = _promised_bytes(file)
    if promised is not None and file.stat().st_size < promised:
        yield f"{file} is cut off: {file.stat().st_size:,} bytes of the {promised:,} that its header names"


def read_config(file: Path) -> Any:
    """The transformers configuration, without the weights.

    Raises:
        GgufError: no GGUF file, an architecture that transformers does not read, the package gguf is missing.
    """
    _require()
    state = file.stat()
    return deepcopy(_read_config(file, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=16)
def _read_config(file: Path, size: int, modified: int) -> Any:
    from transformers import AutoConfig
    from transformers import modeling_gguf_pytorch_utils as reader

    metadata = _metadata(file)
    with _alone(file) as folder:
        if metadata["general.architecture"] in _quick_architectures():
            return cast(Any, AutoConfig).from_pretrained(folder, gguf_file=file.name)
        outline = Path(folder, "outline")
        _write_outline(metadata, _header(file)[1], outline)
        try:
            fields = cast("dict[str, Any]", cast(Any, reader).load_gguf_checkpoint(str(outline))["config"])
        except (ValueError, NotImplementedError) as error:
            raise GgufError(f"{file}: {error}") from error
    fields.setdefault("vocab_size", metadata.get("tokenizer.ggml.tokens"))
    return cast(Any, AutoConfig.for_model(**fields, dtype=own_dtype(file)))


def read_generation_config(file: Path) -> Any:
    """Every token that the file's metadata knows as an end: of a text, of a turn, of a message."""
    from transformers import GenerationConfig

    metadata = _metadata(file)
    ends = list(dict.fromkeys(int(metadata[end]) for end in ENDS if end in metadata))
    return cast(Any, GenerationConfig)(eos_token_id=ends or None, bos_token_id=metadata.get(BEGIN))


def read_tokenizer(file: Path) -> Any:
    """The tokenizer with the chat template of the file. Raises GgufError as `read_config` does.

    It is no instance of the architecture's tokenizer class: some of those add tokens of their own to the vocabulary.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    _metadata(file)
    mapping = cast(Any, gguf_tokenizer_mapping)
    try:
        architecture, tables, settings = mapping.get_gguf_tokenizer(str(file))
        backend, _ = mapping.convert_gguf_tokenizer(architecture, tables)
    except (ValueError, KeyError) as error:
        raise GgufError(f"{file} holds no tokenizer that can be read: {error}") from error
    backend = _without_additions(backend, len(tables["tokens"]))
    tokenizer = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=backend, **settings)
    tokenizer.name_or_path = str(file)  # not before: large vocabularies are looked up by their name, on the hub
    return tokenizer


def _without_additions(backend: Any, size: int) -> Any:
    """transformers builds byte-level vocabularies as GPT-2's, which adds `<|endoftext|>` where it is not among them:
    an id that the model does not have."""
    if backend.get_vocab_size() == size:
        return backend
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["id"] < size]
    return cast(Any, type(backend)).from_str(json.dumps(tree))


def load_weights(file: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, its weights plain tensors, and transformers' report on its keys.

    Args:
        options: of `from_pretrained`; `dtype` is that of the dequantised weights.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    options.setdefault("config", read_config(file))
    with _alone(file) as folder, _bars_on_terminals_only():
        loaded: tuple[Any, dict[str, Any]] = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            output_loading_info=True,
            gguf_file=file.name,
            # else weights stay in their blocks wherever a kernel for them is installed
            quantization_config=cast(Any, GgufConfig)(dequantize=True),
            **options,
        )
    loaded[0].generation_config = read_generation_config(file)
    return loaded


def own_dtype(file: Path) -> str:
    """What the weights are stored in; what they are dequantised into by default where they are quantised."""
    return DTYPE_OF_FILE_TYPE.get(int(_metadata(file).get("general.file_type", -1)), DEQUANTISED)


def _metadata(file: Path) -> dict[str, Any]:
    """The file's metadata; instead of an array of strings its length. Raises GgufError: no GGUF file."""
    return _header(file)[0]


def _header(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Metadata and names of tensors. Raises GgufError: no GGUF file."""
    _require()
    state = file.stat()
    return _read_header(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_header(file: Path, size: int, modified: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read once for each state of the file, which walks through a vocabulary of 150,000 tokens."""
    from transformers.integrations.gguf import reader

    try:
        return cast("tuple[dict[str, Any], tuple[str, ...]]", cast(Any, reader).read_gguf_metadata(str(file)))
    except (ValueError, struct.error, IndexError) as error:  # cut off within the header
        raise GgufError(f"{file} is not readable as GGUF: {error}") from error


def _require() -> None:
    if find_spec("gguf") is None:
        raise GgufError("GGUF files are read with the package gguf: pip install 'motet[gguf]'")


def _promised_bytes(file: Path) -> int | None:
    """Where the last tensor ends, None where a tensor is of a type whose size transformers does not know."""
    from transformers.integrations.gguf import reader

    try:
        header = cast(Any, reader).GgufHeader.from_file(str(file))
    except ValueError:
        return None
    return max((header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)


def _quick_architectures() -> Mapping[str, Any]:
    """Those whose configuration transformers reads without walking through the vocabulary."""
    from transformers.integrations.gguf import gguf_config_mapping

    return cast("Mapping[str, Any]", cast(Any, gguf_config_mapping).GGUF_CONFIG_ARCHS)


def _write_outline(metadata: Mapping[str, Any], tensors: tuple[str, ...], target: Path) -> None:
    """The same file without vocabulary and values. transformers reads the configuration of most architectures through
    a reader that takes 8 s for 300,000 tokens and merges, which say nothing about it."""
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter

    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # it tells every file that it writes
    writer: Any = GGUFWriter(target, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key not in TABLES and key != "general.architecture":
            kind = GGUFValueType.get_type(value)
            writer.add_key_value(key, value, GGUFValueType.INT64 if kind == GGUFValueType.INT32 else kind)
    if (size := metadata.get("tokenizer.ggml.tokens")) and f"{writer.arch}.vocab_size" not in metadata:
        writer.add_vocab_size(size)
    for name in tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def _bars_on_terminals_only() -> Generator[None]:
    """transformers' bar over the tensors of a file knows neither logs nor its own switch for bars."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _alone(file: Path) -> Generator[str]:
    """A folder with nothing but this file: transformers would take a tokenizer, a template or an adapter that lies
    beside it for the file's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, file.name).symlink_to(file.resolve())
        yield folder
