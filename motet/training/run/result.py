"""What a finished run leaves: a folder that transformers, peft and the server load, with its expert bundle."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from motet.experts.bundle import BUNDLE, ExpertBundle, ModelReference, write_bundle
from motet.experts.fingerprints import fingerprint
from motet.models.ends import end_token_ids
from motet.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, HEAD, WEIGHTS
from motet.training.objectives.objective import Calibration
from motet.training.recipe import Checkpoint, Recipe, SoftPrompt
from motet.training.run.checkpoint import sync
from motet.training.run.errors import RunError
from motet.training.run.models import quiet
from motet.training.run.sources import locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASIDE = ".result-"  # begins the names of folders in which results are written


def make_bundle(
    recipe: Recipe,
    output: Path,
    root: Path,
    tokenizer: PreTrainedTokenizerBase,
    data_hash: str,
    calibration: Calibration,
) -> ExpertBundle:
    """The bundle of a recipe's result; its `expert` section is in order (see `card_problems`)."""
    card, base = recipe.expert, recipe.model
    return ExpertBundle(
        name=recipe.name or output.name,
        objective=recipe.objective.type,
        partner=None if card.partner is None else _reference(card.partner, root),
        base=_reference(base.path, root, base.layers) if isinstance(base, Checkpoint) else None,
        tokenizer_fingerprint=fingerprint(cast(Any, tokenizer)),
        vocab_size=len(tokenizer),
        data_hash=data_hash,
        seed=recipe.seed,
        head=calibration.head,
        virtual_tokens=recipe.tuning.tokens if isinstance(recipe.tuning, SoftPrompt) else None,
        evaluation=dict(calibration.measures),
        **_card(recipe),
    )


def card_problems(recipe: Recipe) -> list[str]:
    """What in the recipe's `expert` section does not fit together: roles and strategies, weights and ranges."""
    try:
        ExpertBundle(name="-", objective="-", tokenizer_fingerprint="0" * 64, vocab_size=1, **_card(recipe))
    except ValidationError as error:
        return [_sentence(problem["loc"], problem["msg"]) for problem in error.errors()]
    return []


def _card(recipe: Recipe) -> dict[str, Any]:
    return recipe.expert.model_dump(exclude={"partner"})


def _reference(path: str, root: Path, layers: int | None = None) -> ModelReference:
    return ModelReference.of(path, Path(locate(path, root)), layers)


def _sentence(loc: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(['expert', *map(str, loc)])}: {message.removeprefix('Value error, ')}"


def write_result(
    output: Path,
    model: nn.Module,
    head: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    bundle: ExpertBundle,
    ends: Collection[int] = (),
) -> list[str]:
    """Writes weights (or the adapter), head, tokenizer, bundle and card; all files appear in `output` at the end.

    Args:
        ends: tokens that end an answer, beside those that model and tokenizer name.

    Returns:
        The files' names.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    aside = None
    try:
        aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=output))
        with quiet():
            # peft would look for the base's embeddings where the adapter will lie
            adapter = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
            cast(Any, model).save_pretrained(aside, **adapter)
            tokenizer.save_pretrained(aside)
            _write_ends(aside, model, tokenizer, ends)
        if head is not None:
            safetensors.save_file(_tensors(head), aside / HEAD)
        write_bundle(aside, bundle)
        return _publish(aside, output)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"{output}: the result cannot be written: {reason}") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _write_ends(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """The generation configuration, so that whoever generates with the expert stops where its training data stop."""
    generation = copy.deepcopy(cast(Any, model).generation_config)
    known = end_token_ids(generation, cast(Any, model).config, tokenizer)
    generation.eos_token_id = list(dict.fromkeys([*known, *ends])) or None
    try:
        generation.validate(strict=True)
    except ValueError:  # a temperature without `do_sample`, as older checkpoints have, is not written otherwise
        generation.do_sample = True
    generation.save_pretrained(folder)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _publish(aside: Path, output: Path) -> list[str]:
    """Moves the files, the bundle last: a folder with a bundle is complete."""
    names = sorted((file.name for file in aside.iterdir()), key=lambda name: (name == BUNDLE, name))
    for name in names:
        (aside / name).chmod(0o666 & ~_umask())  # some writers keep their files private
        sync(aside / name)
    for name in names:
        (aside / name).replace(output / name)
    sync(output)
    return names


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def result_names(*, adapter: bool, head: bool) -> list[str]:
    """The names that a result is sure to have; tokenizers add files of their own."""
    weights = [ADAPTER_WEIGHTS[0], ADAPTER_CONFIG] if adapter else [WEIGHTS[0], CONFIG]
    return [*weights, *([HEAD] if head else []), "tokenizer.json", "tokenizer_config.json", BUNDLE, "README.md"]


def relative_base(source: Checkpoint, root: Path, output: Path) -> str:
    """What an adapter calls its base: the way from the result to it, or the hub id."""
    base = locate(source.path, root)
    return os.path.relpath(base, output.resolve()) if Path(base).is_absolute() else base
