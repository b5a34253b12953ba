"""What the operator decides. The environment is read in `operator.file` alone, flags in `motet.cli`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from motet.engines.base import Quantization

Log = Callable[[str], None]  # is called with each line that the start-up has to say
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FamilyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]  # also the name of a folder
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


def _listed(value: Any) -> Any:
    """`a,b` or `["a", "b"]` from the environment → a list."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(",") if part.strip()]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """`path` is a folder or a GGUF file (relative to the file), or a hub id. `template`: how the model reads messages;
    by default its chat template where it has one, else their plain text. `dtype` and `device`: by default the engine's.
    `quantize`: the embedded engine stores the weights in 8 or 4 bits. `base`: the model that an adapter belongs to, by
    default what the adapter itself names. `check_expert`: whether compositions must keep to the role and partner of the
    model's `expert.json`. `vocab`: whether the model may be composed with models that lack its last tokens, which are
    then impossible (`cut`)."""

    path: Annotated[str, Field(min_length=1)]
    dtype: Dtype | None = None
    device: Device | None = None
    quantize: Quantization | None = None
    template: Literal["chat", "plain"] | None = None
    revision: str | None = None
    base: Annotated[str, Field(min_length=1)] | None = None
    check_expert: bool = True
    vocab: Literal["exact", "cut"] = "exact"


class ServerConfig(Section):
    """`max_choices`: choices in flight, computed or waiting; more are answered 503. `drain_seconds`: how long
    SIGTERM lets running answers go on."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed)] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 << 20
    max_choices: Annotated[int, Field(ge=1)] = 1024
    max_choices_per_key: Annotated[int, Field(ge=1)] | None = None
    keep_alive_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0


def _with_models(value: Any) -> Any:
    """A family that says nothing but its models."""
    return {"models": cast("object", value)} if isinstance(value, list | tuple) else value


class FamilyConfig(Section):
    """Models that one vLLM engine holds; a list stands for `models` alone. `memory`: the fraction of the file's memory
    (`kv_cache_gib`, or vLLM's `gpu_memory_utilization`) that is theirs, by default what suits their sizes."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    memory: Annotated[float, Field(gt=0, le=1)] | None = None


Families = dict[FamilyName, Annotated[FamilyConfig, BeforeValidator(_with_models)]]


class EngineConfig(Section):
    """`kind`: the embedded engine, or vLLM with `engine_args` and `families` of its own. `kv_cache_gib`: memory for
    keys and values of all models. `max_running`: choices computed at once, by each family. `prefill_chunk`: prompt
    tokens per step while others decode. `dtype` auto: the checkpoint's own; `device` auto: CUDA where there is one."""

    kind: Literal["torch", "vllm"] = "torch"
    engine_args: dict[str, Any] = {}
    families: Families = {}
    kv_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_running: Annotated[int, Field(ge=1)] = 64
    prefill_chunk: Annotated[int, Field(ge=1)] = 128
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    dtype: Dtype = "auto"
    device: Device = "auto"


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["plain", "json"] = "plain"


class Settings(BaseSettings):
    """The operator's file. `folder` is what its paths are relative to."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="MOTET_", env_nested_delimiter="__", protected_namespaces=()
    )

    models: Annotated[dict[str, ModelConfig], Field(min_length=1)]
    compositions: dict[str, dict[str, Any]] = {}
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is given: `operator_file.py` merges the sources, to know where each value came from."""
        return (init_settings,)


def source_of(model: ModelConfig, folder: Path) -> str:
    """The folder's absolute path where it exists, else the hub id."""
    local = (folder / Path(model.path).expanduser()).resolve()
    return str(local) if local.exists() else model.path
