"""The model card: a Hugging Face README with YAML front matter."""

from __future__ import annotations

import json
from typing import Any

import yaml

from motet.composers.strategies import STRATEGIES
from motet.experts.schema import ExpertBundle, HeadSpec
from motet.models.files import HEAD


def model_card(bundle: ExpertBundle, *, is_adapter: bool) -> str:
    """The text of README.md."""
    front = yaml.safe_dump(_front_matter(bundle, is_adapter), sort_keys=False, allow_unicode=True)
    parts = [f"# {bundle.name}", _summary(bundle, is_adapter), _facts(bundle)]
    if bundle.strategy is not None:
        parts.append(_usage(bundle, bundle.strategy))
    if bundle.evaluation:
        rows = [f"| {name} | {value:.6g} |" for name, value in bundle.evaluation.items()]
        parts.append("\n".join(["## Evaluation", "", "| measure | value |", "| --- | ---: |", *rows]))
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(bundle: ExpertBundle, is_adapter: bool) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    if bundle.base is not None:
        front |= {"base_model": bundle.base.path, "base_model_relation": "adapter" if is_adapter else "finetune"}
    return front | {"tags": ["motet", "expert", bundle.objective, *([bundle.strategy] if bundle.strategy else [])]}


def _summary(bundle: ExpertBundle, is_adapter: bool) -> str:
    what = "A PEFT adapter" if is_adapter else "A causal language model"
    if bundle.virtual_tokens is not None:
        what = f"A soft prompt of {bundle.virtual_tokens} virtual tokens (PEFT's prompt tuning)"
    how = f"trained with `{bundle.objective}` for the role `{bundle.role}`"
    return f"{what} made to be composed with others at the logit level, {how}."


def _facts(bundle: ExpertBundle) -> str:
    layers = f", first {bundle.base.layers} layers" if bundle.base and bundle.base.layers else ""
    rows = {
        "base": bundle.base and f"`{bundle.base.path}`{layers}",
        "untuned partner": bundle.partner and f"`{bundle.partner.path}`",
        "head": bundle.head and _head(bundle.head),
        "base family": bundle.base_family,
        "recommended weight": bundle.weight,
        "weight range": bundle.weight_range and " … ".join(map(str, bundle.weight_range)),
        "vocabulary": f"{bundle.vocab_size} tokens, `{bundle.tokenizer_fingerprint[:16]}`",
        "data": bundle.data_hash and f"`{bundle.data_hash}`",
        "seed": bundle.seed,
        "created": bundle.created,
        "versions": ", ".join(f"{name} {version}" for name, version in bundle.versions.items()),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _head(head: HeadSpec) -> str:
    made = f"`{head.kind}`, in `{HEAD}`"
    if head.clusters is not None:
        return f"{made}: {', '.join(head.clusters)}"
    if head.top is None:
        return made
    size = f"{head.blocks} blocks of width {head.width}, reads the {head.top} most likely tokens"
    return f"{made}: {size}, routes above {head.threshold:.4g}"


def _usage(bundle: ExpertBundle, strategy: str) -> str:
    """The composition to paste into a request, as far as the bundle knows it."""
    composition: dict[str, Any] = {"strategy": strategy}
    composition[bundle.role] = [bundle.name] if bundle.role == "members" else bundle.name
    expert, other = STRATEGIES[strategy].partners or ("", "")
    if bundle.partner is not None and expert == bundle.role:
        composition[other] = bundle.partner.path
    strength = STRATEGIES[strategy].strength
    if bundle.weight is not None and strength is not None:
        composition[strength] = bundle.weight
    lines = json.dumps({"composition": composition}, indent=2, ensure_ascii=False)
    note = "Names are those of the models in the operator's file."
    return f"## Use\n\nBeside `model` and `messages` of a request:\n\n```json\n{lines}\n```\n\n{note}"
