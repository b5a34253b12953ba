"""Which adapters are computed beside the weights of a model of the file, not merged into a copy of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motet.composers.vocabulary import vocabulary_size
from motet.models import prequantised
from motet.models.checkpoint import local, read_config
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import read_weights
from motet.operator.experts import head_of
from motet.operator.file import Configuration
from motet.operator.sources import Source, file_problems, find_source

if TYPE_CHECKING:
    from torch import Tensor

# of a LoraConfig, what says nothing of what is computed, or what the tensors and their scales say themselves
TOLD = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "use_rslora",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "megatron_core",
    "runtime_config",
    "qalora_group_size",
    "init_lora_weights",
}
INITIAL = (True, False, "gaussian", "orthogonal")  # the other ways to begin an adapter change its base's weights
EMPTY: tuple[Any, ...] = (None, False, "none", {}, [])


def with_backbone(name: str, source: Source, configuration: Configuration) -> tuple[Source, str | None]:
    """The source with the model of the file that computes it beside its own weights; or as it is, and why the model of
    the file whose weights it changes does not, where there is one.

    Raises:
        OSError, ValueError: a file that cannot be read.
    """
    if source.base is None or source.backbone is not None or configuration.settings.engine.kind != "torch":
        return source, None
    others = [other for other in configuration.settings.models if other != name]
    bases = [other for other in others if _is_base(other, source, configuration)]
    alike = [other for other in bases if _computes(other, name, configuration)]
    if not bases:
        return source, None
    if not alike:
        return source, f"it has other settings of dtype, device, quantize and draft_quantize than {' and '.join(bases)}"
    if file_problems(source):  # told of it anyway
        return source, None
    try:
        low_ranks(source)
    except Exception as error:  # peft raises whatever it finds missing; what cannot be merged either is told then
        return source, str(error).rstrip(".")
    return replace(source, backbone=alike[0]), None


def low_ranks(source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and s · B (out, r) of every linear that the adapter changes, by its name in the base.

    Raises:
        ValueError: the adapter changes something else as well; the message goes on from its name.
    """
    from peft import LoraConfig, PeftConfig

    config = cast(Any, PeftConfig).from_pretrained(source.path, revision=source.revision)
    if type(config) is not LoraConfig:
        raise ValueError(f"it is of kind {getattr(config.peft_type, 'value', config.peft_type)}")
    if config.init_lora_weights not in INITIAL:
        raise ValueError(f"init_lora_weights is {config.init_lora_weights!r}")
    fields = cast("Mapping[str, Any]", config.to_dict())
    odd = [field for field, value in fields.items() if field not in TOLD and value not in EMPTY]
    if odd:
        raise ValueError(f"it has {odd[0]}")
    if (method := prequantised.method_of(read_config(source.checkpoint, source.checkpoint_revision))) is not None:
        raise ValueError(f"its base is quantised ({method})")
    if head_of(source) is not None:
        raise ValueError("a head is served with it, which would read its base's hidden states")
    if not _has_its_bases_tokens(source):
        raise ValueError("its tokenizer has another number of tokens than its base's")
    return _pairs(source, config)


def _pairs(source: Source, config: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """As peft finds places for the tensors and scales of the configuration, in a base without memory."""
    from peft import inject_adapter_in_model

    from motet.models.facts import shapes_of

    weights = read_weights(source)
    base = cast(Any, shapes_of(read_config(source.checkpoint, source.checkpoint_revision)))
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    names = {name for name, module in base.named_modules() if any(module is end for end in ends)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sees to the layout of GPT-2's layers itself
        adapted = cast(Any, inject_adapter_in_model)(config, base, low_cpu_mem_usage=True)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    rest = dict(weights)
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if name in names:
            raise ValueError(f"it changes {name}")
        pair = [rest.pop(f"base_model.model.{name}.lora_{part}.weight", None) for part in "AB"]
        if pair[0] is None or pair[1] is None or pair[0].ndim != 2:
            raise ValueError(f"{name} has no low rank")
        down, up = cast("list[Tensor]", pair)
        found[name] = down, up.float() * layer.scaling["default"]
    if rest:
        raise ValueError(f"it has {next(iter(rest))}")
    if not found:
        raise ValueError("it changes no linear")
    return found


def _is_base(other: str, source: Source, configuration: Configuration) -> bool:
    """Whether a model of the file is, as it is, what the adapter changes."""
    try:
        found = find_source(configuration.settings.models[other], configuration.folder, configuration.settings.models)
    except (OSError, ValueError):  # told of that model itself
        return False
    if found.base is not None:
        return False
    if (found.path, found.revision) == (source.checkpoint, source.checkpoint_revision):
        return True
    paths = Path(found.path), Path(source.checkpoint)
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def _computes(base: str, name: str, configuration: Configuration) -> bool:
    """Whether a model of the file has what is asked of the weights of an adapter of it; with which weights it guesses
    is the base's own matter, unless the adapter asks for some."""
    models = configuration.settings.models
    draft = models[name].draft_quantize
    alike = _settings(base, configuration) == _settings(name, configuration)
    return alike and draft in (None, models[base].draft_quantize)


def _settings(name: str, configuration: Configuration) -> tuple[str | None, ...]:
    """How a model's weights are stored, and where."""
    model, engine = configuration.settings.models[name], configuration.settings.engine
    return model.dtype or engine.dtype, model.device or engine.device, model.quantize


def _has_its_bases_tokens(source: Source) -> bool:
    """Whether the ids of an adapter's own tokenizer are as many as its base's."""
    if not source.has_tokenizer:
        return True
    own, other = source.tokenizer, (source.checkpoint, source.checkpoint_revision)
    files = [local(*place) / "tokenizer.json" for place in (own, other)]
    if all(file.is_file() for file in files) and cmp(*files, shallow=False):
        return True
    sizes = {vocabulary_size(Tokenizer.load(*place).hf) for place in (own, other)}
    return len(sizes) == 1
