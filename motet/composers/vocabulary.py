"""Members of one composition must share a vocabulary: the same token at every id.

Only the token → id maps are compared, added and special tokens among them. Which token a model ends or begins with
may differ, as between an instruction-tuned model and its base: every stream's prompt is rendered by its own
tokenizer, and the sum is taken id by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_DIFFERENCES_SHOWN = 3


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that is read here."""

    def get_vocab(self) -> dict[str, int]: ...


class VocabularyMismatch(Exception):
    """Members cannot be composed; the message names the first tokens that differ, on both sides."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one model's tokens are.

    `tokens`: token → id, added tokens included. `size`: one more than the largest of the ids. `width`: rows of the
    model's output embedding, often padded beyond `size`. `fingerprint`: equal exactly when the maps are.
    """

    tokens: Mapping[str, int]
    size: int
    width: int
    fingerprint: str


def read_vocabulary(tokenizer: Tokenizer, width: int) -> Vocabulary:
    """The vocabulary of a tokenizer and a model of `width` logits."""
    tokens = tokenizer.get_vocab()
    return Vocabulary(tokens, max(tokens.values(), default=-1) + 1, width, _digest(tokens))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id of a tokenizer."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """A SHA-256 in hex over the token → id map; models with equal fingerprints can be composed."""
    return _digest(tokenizer.get_vocab())


def _digest(tokens: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for token, index in sorted(tokens.items()):
        data = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d %d:" % (index, len(data)) + data)  # the length keeps tokens apart whatever they hold
    return digest.hexdigest()


def shared_width(members: Mapping[str, Vocabulary]) -> int:
    """The number of logits that the members share: padded rows beyond the tokenizer are cut off.

    Args:
        members: name → vocabulary, at least one; the first is what the others are compared with.

    Raises:
        VocabularyMismatch: a token differs, or a model has fewer logits than its tokenizer has ids.
    """
    (first, reference), *others = members.items()
    for name, vocabulary in others:
        if vocabulary.fingerprint != reference.fingerprint:
            raise VocabularyMismatch(_difference(first, reference.tokens, name, vocabulary.tokens))
    size = reference.size
    for name, vocabulary in members.items():
        if vocabulary.width < size:
            raise VocabularyMismatch(
                f"model {name!r} has {vocabulary.width} logits, but its tokenizer has ids up to {size - 1}"
            )
    return size


def _difference(left: str, ours: Mapping[str, int], right: str, theirs: Mapping[str, int]) -> str:
    ids = sorted({index for _, index in ours.items() ^ theirs.items()})
    named = _by_id(ours, ids), _by_id(theirs, ids)
    shown = "; ".join(
        f"id {i} is {named[0].get(i, 'missing')} in {left!r} and {named[1].get(i, 'missing')} in {right!r}"
        for i in ids[:_DIFFERENCES_SHOWN]
    )
    return f"vocabularies differ at {len(ids)} ids ({len(ours)} tokens against {len(theirs)}): {shown}"


def _by_id(tokens: Mapping[str, int], ids: list[int]) -> dict[int, str]:
    wanted = set(ids[:_DIFFERENCES_SHOWN])
    found: dict[int, list[str]] = {}
    for token, index in sorted(tokens.items()):
        if index in wanted:
            found.setdefault(index, []).append(repr(token))
    return {index: " and ".join(texts) for index, texts in found.items()}
