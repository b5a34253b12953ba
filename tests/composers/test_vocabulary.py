"""Which tokenizers may be composed, and what is said where they may not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from motet.composers.vocabulary import Vocabulary, VocabularyMismatch, fingerprint, read_vocabulary, shared_width


@dataclass(frozen=True)
class FakeTokenizer:
    tokens: dict[str, int]

    def get_vocab(self) -> dict[str, int]:
        return dict(self.tokens)


def words(*tokens: str) -> FakeTokenizer:
    return FakeTokenizer({token: i for i, token in enumerate(tokens)})


def width(**members: tuple[FakeTokenizer | PreTrainedTokenizerFast, int]) -> int:
    return shared_width({name: read_vocabulary(tokenizer, rows) for name, (tokenizer, rows) in members.items()})


def mismatch(**members: tuple[FakeTokenizer, int]) -> str:
    with pytest.raises(VocabularyMismatch) as caught:
        width(**members)
    return str(caught.value)


def fast(*added: str, **special: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)
    tokenizer.add_tokens(list(added))
    return tokenizer


def test_padded_rows_are_cut_to_the_tokenizer() -> None:
    abc = words("a", "b", "c")
    assert width(large=(abc, 64), small=(abc, 3)) == 3
    assert width(alone=(abc, 8)) == 3


def test_ids_may_have_holes() -> None:
    holes = FakeTokenizer({"a": 0, "b": 5})
    assert width(large=(holes, 8), small=(holes, 6)) == 6


def test_first_differences_are_named_on_both_sides() -> None:
    assert mismatch(large=(words("a", "b", "c"), 3), small=(words("a", "x", "y"), 3)) == (
        "vocabularies differ at 2 ids (3 tokens against 3): "
        "id 1 is 'b' in 'large' and 'x' in 'small'; id 2 is 'c' in 'large' and 'y' in 'small'"
    )


def test_added_token_of_one_side_is_named() -> None:
    """Proxy-tuning's reference crashes on a wider anti-expert; here it never gets that far."""
    assert mismatch(large=(words("a"), 2), small=(words("a"), 2), chat=(words("a", "<pad>"), 2)) == (
        "vocabularies differ at 1 ids (1 tokens against 2): id 1 is missing in 'large' and '<pad>' in 'chat'; "
        "all ids below 1 are the same: `vocab: cut` for 'chat' in the operator's file composes it over these alone"
    )


def cut(*tokens: str) -> Vocabulary:
    return read_vocabulary(words(*tokens), len(tokens), cut=True)


def test_a_member_that_may_be_cut_gives_up_its_last_ids() -> None:
    exact = read_vocabulary(words("a", "b"), 4)
    for members in ({"base": exact, "chat": cut("a", "b", "<e>")}, {"chat": cut("a", "b", "<e>"), "base": exact}):
        assert shared_width(members) == 2
    assert shared_width({"chat": cut("a", "b", "<e>"), "other": cut("a", "b", "<e>")}) == 3
    for other in (cut("a", "x", "<e>"), cut("b", "a", "<e>"), cut("a", "x")):
        with pytest.raises(VocabularyMismatch) as refusal:
            shared_width({"base": exact, "chat": other})
        assert "vocab: cut" not in str(refusal.value)


def test_only_the_first_differences_are_shown() -> None:
    left, right = words(*map(str, range(100))), words(*map(str, range(100, 200)))
    message = mismatch(a=(left, 100), b=(right, 100))
    assert message.startswith("vocabularies differ at 100 ids (100 tokens against 100): id 0 is '0' in 'a'")
    assert "id 2 " in message
    assert "id 3 " not in message


def test_two_tokens_of_one_id() -> None:
    both = FakeTokenizer({"a": 0, "b": 0})
    assert "id 0 is 'a' in 'l' and 'a' and 'b' in 'r'" in mismatch(l=(words("a"), 1), r=(both, 1))


def test_model_with_fewer_rows_than_tokens() -> None:
    abc = words("a", "b", "c")
    assert mismatch(large=(abc, 3), small=(abc, 2)) == ("model 'small' has 2 logits, but its tokenizer has ids up to 2")


def test_real_tokenizers() -> None:
    """What ends a text may differ (an instruction-tuned model and its base); the tokens may not."""
    assert width(base=(fast("<end>", eos_token="b"), 8), chat=(fast("<end>", eos_token="<end>"), 4)) == 4
    assert fingerprint(fast("<end>")) == fingerprint(fast(eos_token="<end>"))
    with pytest.raises(VocabularyMismatch, match="id 3 is '<end>' in 'base' and '<stop>' in 'chat'"):
        width(base=(fast("<end>"), 4), chat=(fast("<stop>"), 4))


vocabularies = st.dictionaries(st.text(max_size=3), st.integers(0, 5), min_size=1, max_size=6)


@settings(deadline=None)
@given(vocabularies, vocabularies)
def test_fingerprints_are_equal_exactly_when_the_maps_are(left: dict[str, int], right: dict[str, int]) -> None:
    same = fingerprint(FakeTokenizer(left)) == fingerprint(FakeTokenizer(right))
    assert same == (left == right)
    reordered = dict(reversed(left.items()))
    assert fingerprint(FakeTokenizer(left)) == fingerprint(FakeTokenizer(reordered))


def test_fingerprint_keeps_tokens_apart() -> None:
    """Without their lengths both maps would be hashed as 0:a1:b."""
    assert fingerprint(FakeTokenizer({"a1:b": 0})) != fingerprint(FakeTokenizer({"a": 0, "b": 1}))
