"""Which models of the operator's file one vLLM engine holds, and how the engines divide the memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from motet.composers.vocabulary import Vocabulary, VocabularyMismatch, shared_width
from motet.engines.vllm.families import Family
from motet.models.info import ModelInfo
from motet.operator.settings import FamilyConfig
from motet.settings import nearest


def naming_problems(families: Mapping[str, FamilyConfig], known: Sequence[str]) -> list[str]:
    """What is wrong with `engine.families` as far as names and fractions show it, one sentence each."""
    if not families:
        return []
    problems = [
        f"engine.families.{name}: the file has no model {model!r}.{nearest(model, known)}"
        for name, family in families.items()
        for model in family.models
        if model not in known
    ]
    for model in known:
        homes = [name for name, family in families.items() for named in family.models if named == model]
        if not homes:
            problems.append(f"engine.families: model {model!r} is in none; every model belongs to one.")
        elif len(homes) > 1:
            problems.append(
                f"engine.families: model {model!r} is named {len(homes)} times, in {' and '.join(homes)}; "
                "every model belongs to one family, once."
            )
    return problems + _memory_problems(families)


def _memory_problems(families: Mapping[str, FamilyConfig]) -> list[str]:
    given = {name: family.memory for name, family in families.items() if family.memory is not None}
    total = sum(given.values())
    if total > 1 + 1e-9:
        return [f"engine.families: the fractions of memory add up to {total:g}; they are parts of 1."]
    others = [name for name in families if name not in given]
    if others and total > 1 - 1e-9:
        return [f"engine.families: the fractions of memory add up to 1, so that none is left for {', '.join(others)}."]
    return []


def group(
    asked: Mapping[str, FamilyConfig], vocabularies: Mapping[str, Vocabulary], infos: Mapping[str, ModelInfo]
) -> tuple[list[Family], list[str]]:
    """The families, and what does not fit together in those that the operator asked for.

    Args:
        asked: by name; where there are none, models that can be in one engine are.
        vocabularies, infos: by model, of all that could be read.
    """
    if asked:
        given = {name: [model for model in family.models if model in infos] for name, family in asked.items()}
    else:
        given = _compatible(vocabularies, infos)
    families = [
        Family(
            name,
            tuple(models),
            vocabularies[models[0]].fingerprint,
            infos[models[0]].dtype,
            asked[name].memory if asked else None,
        )
        for name, models in given.items()
        if models
    ]
    return families, [problem for family in families for problem in _misfits(family, vocabularies, infos)]


def _compatible(vocabularies: Mapping[str, Vocabulary], infos: Mapping[str, ModelInfo]) -> dict[str, list[str]]:
    """Models of one vocabulary and dtype, under the name of the first of them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for model, info in infos.items():
        groups.setdefault((vocabularies[model].fingerprint, info.dtype), []).append(model)
    return {models[0]: models for models in groups.values()}


def _misfits(family: Family, vocabularies: Mapping[str, Vocabulary], infos: Mapping[str, ModelInfo]) -> list[str]:
    """One engine has one dtype and one vocabulary."""
    problems: list[str] = []
    dtypes = {model: infos[model].dtype for model in family.models}
    if len(set(dtypes.values())) > 1:
        named = ", ".join(f"{model!r} is {dtype}" for model, dtype in dtypes.items())
        problems.append(
            f"engine.families.{family.name}: models of one vLLM engine have one dtype, but {named}. Set engine.dtype."
        )
    first = family.models[0]
    for model in family.models[1:]:
        try:
            shared_width({first: vocabularies[first], model: vocabularies[model]})
        except VocabularyMismatch as mismatch:
            problems.append(f"engine.families.{family.name}: {mismatch}.")
    return problems


def per_family(
    families: Sequence[Family], sources: Mapping[str, Hashable], costs: Mapping[str, int], draft: str | None = None
) -> dict[str, int]:
    """What the models of each family cost together; a model of another's source costs nothing more, `draft`, the model
    that vLLM drafts with, is there twice."""
    return {
        family.name: sum({sources[model]: costs[model] for model in family.models}.values())
        + (costs[draft] if draft in family.models else 0)
        for family in families
    }


def shares(families: Sequence[Family], costs: Mapping[str, int]) -> dict[str, float]:
    """The fraction of the memory of each family: what the operator gave it; the rest is divided by `costs`."""
    given = {family.name: family.memory for family in families if family.memory is not None}
    others = [family.name for family in families if family.memory is None]
    left, cost = 1 - sum(given.values()), sum(costs[name] for name in others)
    return {family.name: given.get(family.name, left * costs[family.name] / (cost or 1)) for family in families}
