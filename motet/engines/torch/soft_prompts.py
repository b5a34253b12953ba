"""Soft prompts: trained embeddings in front of all that a model reads, under a name of their own.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021. Streams with one and without are rows
of the same forward of the same weights. The rows of a soft prompt have ids as tokens have, so that contexts, slots and
cached prefixes need to know nothing of them; the member looks their embeddings up (`Member.virtual`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from motet.engines.torch.adapters import Adapter
from motet.engines.torch.model import Member, ModelWork
from motet.models.ends import ends_within
from motet.models.info import ModelInfo

log = logging.getLogger(__name__)

PROOF_TOKENS = 8
# how far logits may lie apart that are the same, as a share of their spread; other embeddings move them by all of it
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
_unused = count(1)  # of all members: a cached prefix is never mistaken for another's


@dataclass(frozen=True, slots=True, eq=False)
class SoftPrompt:
    """What the engine has under a soft prompt's name, in the place of a `Member`.

    Attributes:
        member: the model behind it, which other names may share.
        prefix: the ids of its P rows, all negative.
        info: of a model of this name, whose context is P tokens shorter than the member's.
        adapter: the number of the one with which the member computes it, 0 for none.
    """

    member: Member
    prefix: tuple[int, ...]
    info: ModelInfo
    adapter: int = 0

    @property
    def name(self) -> str:
        return self.info.name

    def forget(self) -> None:
        """Nothing reads it any more."""
        for token in self.prefix:
            del self.member.virtual[token]


Model = Member | Adapter | SoftPrompt  # what a plan's stream may name


def members_of(models: Mapping[str, Model]) -> dict[str, Member]:
    """By their own names, those that compute some models."""
    return {model.member.name: model.member for model in models.values()}


def soft_prompt(name: str, behind: Member | Adapter, embeddings: Tensor, ends: Collection[int] = ()) -> SoftPrompt:
    """Embeddings (P, H) in front of what a member reads, or an adapter of one.

    Args:
        ends: of an answer, beside the member's: those that its training data had.

    Raises:
        ValueError: another width than the member's, values that are not finite, no room for a token behind them, or a
            member that does not compute from embeddings what it computes from ids.
    """
    member = behind.member
    if not member.reads_embeddings:
        kind = type(member.model).__name__
        raise ValueError(f"no soft prompt can stand in front of {member.name!r}: {kind} reads more than embeddings")
    width = _embedded(member, [0]).shape[-1]
    if embeddings.ndim != 2 or not len(embeddings) or embeddings.shape[1] != width:
        raise ValueError(
            f"the soft prompt's embeddings are {list(embeddings.shape)}, {member.name!r} takes rows of {width}"
        )
    rows = embeddings.to(member.device, member.dtype)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"the soft prompt holds values that are not finite in {member.info.dtype}")
    room = member.info.max_model_len - len(rows)
    if room < 1:
        raise ValueError(
            f"the soft prompt has {len(rows)} virtual tokens, {member.name!r} a context of {member.info.max_model_len}"
        )
    own = tuple(dict.fromkeys((*behind.info.eos_token_ids, *ends_within(member.vocab_size, ends, ()))))
    info = replace(
        behind.info,
        name=name,
        max_model_len=room,
        eos_token_ids=own,
        head=None,  # it was trained on what the model says without
        clusters=(),
        backbone=behind.name,
        virtual_tokens=len(rows),
    )
    return SoftPrompt(member, _lodge(member, rows), info, behind.adapter)


def _lodge(member: Member, rows: Tensor) -> tuple[int, ...]:
    """The ids under which the member has the rows from now on."""
    ids = tuple(-next(_unused) for _ in range(len(rows)))
    member.virtual.update(zip(ids, rows, strict=True))
    return ids


def _embedded(member: Member, ids: Sequence[int]) -> Tensor:
    """(n, H) the member's own embeddings."""
    return member.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64, device=member.device)).detach()


@torch.inference_mode()
def reads_embeddings(member: Member, ids: Sequence[int]) -> bool:
    """Whether a text's own embeddings give what its ids give. Called before the member serves anything."""
    ids = ids[:PROOF_TOKENS]
    prefix: tuple[int, ...] = ()
    member.cache.resize(1, len(ids))
    try:
        prefix = _lodge(member, _embedded(member, ids))
        plain, virtual = (member.forward([ModelWork(0, 0, tokens, len(ids))]).float() for tokens in (ids, prefix))
    except Exception as error:  # transformers raises whatever it finds missing
        log.debug("%s does not read embeddings: %r", member.name, error)
        return False
    finally:
        SoftPrompt(member, prefix, member.info).forget()
        member.cache.clear()
        member.forward_seconds, member.num_forwards = 0.0, 0
    apart = (plain - virtual).square().mean().sqrt()
    return bool(apart <= SAME[member.dtype] * plain.std().clamp_min(1e-6))
