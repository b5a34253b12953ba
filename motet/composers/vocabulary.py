"""Members of one composition must share a vocabulary: the same token at every id. A member that has all tokens of the
others, and more of its own behind them, may be cut to what they share, where the operator says so; one whose tokens
differ otherwise may be translated (`token_map`).

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
MOST_PAIRS = 4096  # that are remembered
# fingerprints of two vocabularies → whether the first begins with the other
_BEGINNINGS: dict[tuple[str, str], bool] = {}


class ReadableTokenizer(Protocol):
    """The part of transformers' tokenizers that is read here."""

    def get_vocab(self) -> dict[str, int]: ...


class VocabularyMismatch(Exception):
    """Members cannot be composed; the message names the first tokens that differ, on both sides."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one model's tokens are.

    `tokens`: token → id, added tokens included. `size`: one more than the largest of the ids. `width`: rows of the
    model's output embedding, often padded beyond `size`. `fingerprint`: equal exactly when the maps are. `cut`: whether
    it may be composed over fewer ids, its last ones impossible; `translated`: whether its ids
    may be mapped.
    """

    tokens: Mapping[str, int]
    size: int
    width: int
    fingerprint: str
    cut: bool = False
    translated: bool = False


def read_vocabulary(
    tokenizer: ReadableTokenizer, width: int, *, cut: bool = False, translated: bool = False
) -> Vocabulary:
    """The vocabulary of a tokenizer and a model of `width` logits."""
    tokens = tokenizer.get_vocab()
    return Vocabulary(tokens, max(tokens.values(), default=-1) + 1, width, _digest(tokens), cut, translated)


def vocabulary_size(tokenizer: ReadableTokenizer) -> int:
    """One more than the largest id of a tokenizer."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def fingerprint(tokenizer: ReadableTokenizer) -> str:
    """A SHA-256 in hex over the token → id map; models with equal fingerprints can be composed."""
    return _digest(tokenizer.get_vocab())


def _digest(tokens: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for token, index in sorted(tokens.items()):
        data = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d %d:" % (index, len(data)) + data)  # the length keeps tokens apart whatever they hold
    return digest.hexdigest()


def shared_width(members: Mapping[str, Vocabulary]) -> int:
    """The number of logits that the members share: padded rows beyond the tokenizer are cut off, and the last ids of
    members that may be cut.

    Args:
        members: name → vocabulary, at least one; the first is what the others are compared with.

    Raises:
        VocabularyMismatch: a token differs, or a model has fewer logits than its tokenizer has ids.
    """
    shortest = min(members, key=lambda name: members[name].size)
    size = members[shortest].size
    for name, vocabulary in members.items():
        if vocabulary.fingerprint == members[shortest].fingerprint:
            continue
        has_all = _begins_with(vocabulary, members[shortest])
        if not (has_all and vocabulary.cut):
            raise VocabularyMismatch(_refusal(members, shortest, name) + (_hint(name, size) if has_all else ""))
    for name, vocabulary in members.items():
        if vocabulary.width < size:
            raise VocabularyMismatch(
                f"model {name!r} has {vocabulary.width} logits, but its tokenizer has ids up to {size - 1}"
            )
    return size


def can_share(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether `shared_width` takes the two; tokens are compared once, and only where one of them may be cut."""
    shorter, longer = sorted((one, other), key=lambda vocabulary: vocabulary.size)
    if one.fingerprint != other.fingerprint and not (longer.cut and _begins_so(longer, shorter)):
        return False
    return min(one.width, other.width) >= shorter.size


def _begins_so(vocabulary: Vocabulary, shorter: Vocabulary) -> bool:
    pair = (vocabulary.fingerprint, shorter.fingerprint)
    if pair not in _BEGINNINGS:
        if len(_BEGINNINGS) >= MOST_PAIRS:
            _BEGINNINGS.clear()
        _BEGINNINGS[pair] = _begins_with(vocabulary, shorter)
    return _BEGINNINGS[pair]


def _begins_with(vocabulary: Vocabulary, shorter: Vocabulary) -> bool:
    """Whether its ids below the other's size are the other's tokens, and it has more behind them."""
    common = {token: index for token, index in vocabulary.tokens.items() if index < shorter.size}
    return vocabulary.size > shorter.size and common == shorter.tokens


def _refusal(members: Mapping[str, Vocabulary], shortest: str, name: str) -> str:
    """The first member is what the others are compared with."""
    first = next(iter(members))
    left, right = (first, shortest) if name == first else (first, name)
    if members[left].fingerprint == members[right].fingerprint:
        left, right = shortest, name
    return _difference(left, members[left].tokens, right, members[right].tokens)


def _hint(name: str, size: int) -> str:
    return (
        f"; all ids below {size} are the same: `vocab: cut` for {name!r} in the operator's file composes it over these "
        "alone"
    )


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
