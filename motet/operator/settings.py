"""What the operator decides. The environment is read in `file.py` alone, flags in `motet.cli`."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from motet.engines.drafts import AUTO, MOST_GUESSES, OFF, Acceptance, Speculation
from motet.models.info import Quantization
from motet.models.tool_formats import FormatName
from motet.operator import keys
from motet.operator.gates import GateConfig
from motet.operator.policies import PolicyConfig
from motet.operator.section import Section

Log = Callable[[str], None]  # is called with each line that the start-up has to say
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FamilyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]  # also the name of a folder
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


def _listed(value: Any) -> Any:
    """`a,b` or `["a", "b"]` from the environment → a list."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(",") if part.strip()]


def _keys_listed(value: Any) -> Any:
    """An empty text is no list of no keys: a variable that is set to nothing would open the server."""
    if isinstance(value, str) and not value.strip(" []"):
        raise ValueError("it is empty, which would let everybody in: leave it out, or name keys")
    if isinstance(value, str) and not value.startswith("["):
        return [part.strip() for part in value.split(",")]
    listed = _listed(value)
    match listed:
        case list() | tuple():
            return [text for entry in cast("list[Any]", listed) for text in _keys_in(entry)]
        case _:
            return _keys_in(cast("object", listed)) if isinstance(listed, dict) else listed


def _keys_in(entry: object) -> list[object]:
    """`alice: KEY` in YAML is a mapping: written as the other sources write it."""
    if not isinstance(entry, dict):
        return [entry]
    return [f"{name}: {'' if key is None else key}" for name, key in cast("dict[object, object]", entry).items()]


def _usable_key(key: SecretStr) -> SecretStr:
    if (wrong := keys.problem(key.get_secret_value())) is not None:
        raise ValueError(wrong)
    return key


def _traceable(endpoint: str) -> str:
    if not all(find_spec(name) for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.instrumentation")):
        raise ValueError("traces need OpenTelemetry: pip install 'motet[otel]'")
    return endpoint


class ModelConfig(Section):
    """One model, under the name by which requests and compositions call it."""

    path: Annotated[str, Field(min_length=1)]
    """A folder or a GGUF file (relative to the operator's file), or a hub id."""
    dtype: Dtype | None = None
    """By default the engine's."""
    device: Device | None = None
    """By default the engine's."""
    quantize: Quantization | None = None
    """The embedded engine stores the weights in 8 or 4 bits."""
    draft_quantize: Quantization | None = None
    """The embedded engine keeps the weights in so few bits as well, beside its own, and guesses ahead with them."""
    template: Literal["chat", "plain"] | None = None
    """How the model reads messages; by default its chat template where it has one, else their plain text."""
    revision: str | None = None
    """Of a hub id: a branch, a tag or a commit."""
    base: Annotated[str, Field(min_length=1)] | None = None
    """The model that an adapter belongs to, by default what the adapter itself names. A soft prompt's is one of the
    file, by its name or path."""
    check_expert: bool = True
    """Whether compositions must keep to the role and the partner that the model's `expert.json` names."""
    tool_call_parser: FormatName | None = None
    """How the model writes calls of tools; by default as its chat template does."""
    describe_tools: bool = True
    """Whether a model with a `tool_call_parser`, but a template that knows no tools, is told of them in words."""
    close_json: bool = False
    """Close the JSON of calls and structured answers in the last third of `max_tokens`, whatever still could be written
    into it: for models that do not end it themselves."""
    think_tags: Literal["none"] | tuple[Tag, Tag] | None = None
    """What stands before and behind the model's thoughts, `[<think>, </think>]`; by default what its chat template
    has. `none`: what it writes is all answer."""
    vocab: Literal["exact", "cut", "map"] = "exact"
    """`cut`: the model may be composed with models that lack its last tokens, which are then impossible. `map`: with a
    base of other tokens, by what the tokens stand for."""


class Example(Section):
    """A question that the page offers, and who answers it."""

    title: Annotated[str, Field(min_length=1)]
    """What there is to see."""
    model: Annotated[str, Field(min_length=1)]
    """A model or a named composition."""
    beside: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    """Models or named compositions that answer beside it, at most two."""
    question: str
    """What is asked; in form `completion` the text to go on with."""
    form: Literal["chat", "completion"] = "chat"
    """How it is asked."""


def _switched(value: Any) -> Any:
    """`playground: false` is short for `{enabled: false}`."""
    return cast("object", value) if isinstance(value, dict | Section) else {"enabled": cast("object", value)}


class Playground(Section):
    """The page at `/`; `false` alone switches it off."""

    enabled: bool = True
    """Whether it is served. The page itself wants no key; all that it asks does."""
    examples: tuple[Example, ...] = ()
    """What it offers to begin with; without any, the named compositions."""


ApiKey = Annotated[SecretStr, AfterValidator(_usable_key)]


class ServerConfig(Section):
    """Where it listens, who may ask, and how much at once."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_keys_listed)] = ()
    """Clients must send one of them, written as it is or as `sha256:` and its digest, with or without a name before it
    (`alice: KEY`); none: everybody is let in."""
    api_keys_file: str | None = None
    """More of them, one per line (relative to the operator's file); lines that begin with `#` are none."""
    audit_log: str | None = None
    """A file that gets one JSON object per request (relative to the operator's file): key, policy, model, decision."""
    playground: Annotated[Playground, BeforeValidator(_switched)] = Playground()
    """The page at `/`; `false` switches it off."""
    open_docs: bool = False
    """`/docs` and `/openapi.json` want no key."""
    open_metrics: bool = False
    """`/metrics` wants no key."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Origins of web pages whose scripts may ask; `*` is any."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 << 20
    """Longer bodies are answered 413."""
    max_bodies_bytes: Annotated[int, Field(ge=1024)] = 256 << 20
    """Bytes of the bodies of all requests together, each from when it comes until it is answered; beyond it those
    that are longer than 64 KiB are answered 503."""
    max_choices: Annotated[int, Field(ge=1)] = 1024
    """Choices in flight, computed or waiting; more are answered 503."""
    max_choices_per_key: Annotated[int, Field(ge=1)] | None = None
    """The same for each key; more are answered 429."""
    max_requests_per_minute_per_key: Annotated[int, Field(ge=1)] | None = None
    """Requests of any kind from each key; more are answered 429."""
    max_tokens_per_minute_per_key: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers of each key; 429 until what a long answer took beyond them is paid back."""
    max_connections: Annotated[int, Field(ge=1)] | None = None
    """Connections at once, by default as many as the files that the process may open leave; others are answered 503."""
    header_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """A connection that has not sent a request's whole head for so long is closed."""
    body_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """A body that has not come whole by then is answered 408."""
    write_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """A client that takes nothing of its answer for so long is cut off, and what it held is freed."""
    keep_alive_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    """A stream in which nothing came for so long gets a comment line."""
    otlp_traces_endpoint: Annotated[str, Field(pattern="^https?://"), AfterValidator(_traceable)] | None = None
    """A collector's address, as `http://localhost:4318/v1/traces`, to which traces of requests and steps are sent;
    needs `pip install 'motet[otel]'`."""
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """How long SIGTERM lets running answers go on."""


def _with_models(value: Any) -> Any:
    """A family that says nothing but its models."""
    return {"models": cast("object", value)} if isinstance(value, list | tuple) else value


class FamilyConfig(Section):
    """Models that one vLLM engine holds; a list stands for `models` alone."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Their names; every model of the file is in one family."""
    memory: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of the file's memory (`kv_cache_gib`, or vLLM's `gpu_memory_utilization`) that is theirs, by default
    what suits their sizes."""


Families = dict[FamilyName, Annotated[FamilyConfig, BeforeValidator(_with_models)]]


class SpeculationConfig(Section):
    """Which guesses are made; what is left out is what pays."""

    draft: str | None = None
    """Who guesses: a role or a model of the compositions' streams, or `ngram`, the text itself where it repeats.
    Compositions without that stream do not guess."""
    tokens: Annotated[int, Field(ge=1, le=MOST_GUESSES)] = MOST_GUESSES
    """Most guesses that are verified at once."""
    acceptance: Acceptance = "coupled"
    """`coupled`: a guess is right where it is the very token that would have been drawn. `ratio`: where tokens are
    drawn without a seed, more guesses are right, and answers are as likely as before."""


class EngineConfig(Section):
    """What computes."""

    kind: Literal["torch", "vllm"] = "torch"
    """The embedded engine, or vLLM."""
    engine_args: dict[str, Any] = Field(default={})
    """vLLM's own options, by their names there."""
    families: Families = Field(default={})
    """vLLM: which models share an engine, by default those that can be composed."""
    restart: bool = False
    """The embedded engine begins anew after a defect that ended it: requests in flight fail, cached prefixes are lost,
    the models stay. Else `/health` says 503 until the process is started again."""
    kv_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Memory for keys and values of all models. The embedded engine's answers take it as they grow; where it runs out,
    the youngest give theirs up and are computed anew when there is some."""
    max_running: Annotated[int, Field(ge=1)] = 64
    """Choices computed at once, by each family."""
    prefill_chunk: Annotated[int, Field(ge=1)] = 128
    """Prompt tokens per step, at most, while others decode. As a rule fewer are read: as many as make a step half as
    long again as without them."""
    speculation: Literal["auto", "off"] | SpeculationConfig = "auto"
    """The embedded engine: guesses for requests that do not say otherwise, where they are measured to pay. `auto` makes
    them where all models compute in float32; a mapping makes them in every dtype."""
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Upper bound on the context of every model, by default its own."""
    dtype: Dtype = "auto"
    """Of the weights; `auto` is the checkpoint's own."""
    device: Device = "auto"
    """`auto` is CUDA where there is one, else the CPU."""

    @property
    def wished_speculation(self) -> Speculation:
        """Of requests that say nothing of it."""
        match self.speculation:
            case "off":
                return OFF
            case "auto":
                return AUTO
            case written:
                return Speculation(written.draft, written.tokens, written.acceptance)


class LogConfig(Section):
    """What is logged; never prompts."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    format: Literal["plain", "json"] = "plain"
    """`json`: one object per line."""


class Settings(BaseSettings):
    """The operator's file."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="MOTET_",
        env_nested_delimiter="__",
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    models: Annotated[dict[str, ModelConfig], Field(min_length=1)]
    """The models by name."""
    compositions: dict[str, dict[str, Any]] = {}
    """Named compositions: model ids that stand for a composition object, as requests send it, or for a gated one."""
    strategies: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strategies of other installed packages, by their names in the entry point group `motet.strategies`."""
    gates: dict[str, GateConfig] = {}
    """Classifiers that gated compositions ask about prompts."""
    policies: dict[str, PolicyConfig] = {}
    """Which keys reach which models, and what they may set; without any, every key may ask for everything."""
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
        """Only what it is given: `file.py` merges the sources, to know where each value came from."""
        return (init_settings,)


def source_of(model: ModelConfig, folder: Path) -> str:
    """The folder's absolute path where it exists, else the hub id."""
    local = (folder / Path(model.path).expanduser()).resolve()
    return str(local) if local.exists() else model.path
