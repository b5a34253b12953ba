"""Which tokens of two vocabularies are counterparts, and what is read in the place of the others."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from motet.composers.token_map import NONE, TokenMap, Tokens, token_map
from motet.models.pieces import Piece, pieces_of, spelled
from motet.models.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer


def pieces(*found: tuple[str, str] | str) -> dict[int, Piece]:
    """Text, or (kind, text)."""
    kinds = [("text", one) if isinstance(one, str) else one for one in found]
    return {i: Piece(kind, text.encode(), text) for i, (kind, text) in enumerate(kinds)}  # type: ignore[arg-type]


def made(base: Tokens, member: Tokens) -> TokenMap:
    return token_map(base, member, len(base.pieces), spell=lambda token: [100 + token])


def test_counterparts_stand_for_the_same_bytes() -> None:
    base = Tokens(pieces(" a", "b", "c", ("special", "<end>"), ("special", "b")), ends=[3])
    member = Tokens(pieces("c", ("special", "<end>"), "b", " a", ("special", "b"), "more"), ends=[1])
    tokens = made(base, member)
    assert tokens.ids == (3, 2, 0, 1, 4)
    assert (tokens.is_exact, tokens.has_all, tokens.num_shared) == (True, True, 5)
    assert tokens.read([0, 3, 1]) == [3, 1, 2]
    assert tokens.back == {3: 0, 2: 1, 0: 2, 1: 3, 4: 4}


def test_each_member_token_is_one_counterpart() -> None:
    """Two of the base's tokens of the same bytes would count the member's mass twice; a byte is first one as a byte."""
    base = Tokens(pieces(("byte", "\n"), "\n", ("byte", "x")))
    member = Tokens(pieces("\n", ("added", "x")))
    assert made(base, member).ids == (NONE, 0, 1)
    both = Tokens(pieces("\n", ("byte", "\n")))
    assert made(base, both).ids == (1, 0, NONE)


def test_text_that_looks_special_is_none() -> None:
    base = Tokens(pieces("<end>", ("special", "<call>"), ("added", "<other>")))
    member = Tokens(pieces(("special", "<end>"), ("added", "<call>"), ("special", "<other>")))
    tokens = made(base, member)
    assert tokens.ids == (NONE, 1, 2)
    assert tokens.read([0, 1, 0]) == [100, 1, 100]
    assert not tokens.is_exact


def test_ends_and_beginnings_by_their_role() -> None:
    base = Tokens(pieces("a", ("special", "<s>"), ("special", "<end>"), ("special", "<stop>")), ends=[2, 3], start=1)
    member = Tokens(pieces("a", ("special", "<e>"), ("special", "<f>"), ("special", "<b>")), ends=[1, 2], start=3)
    tokens = made(base, member)
    assert tokens.ids == (0, 3, 1, NONE)
    assert (tokens.end, tokens.own_ends, tokens.is_by_role, tokens.is_exact) == (2, (1, 2), True, False)
    assert tokens.back[1] == tokens.back[2] == 2
    shared = Tokens(pieces("a", ("special", "<end>"), ("special", "<f>")), ends=[1, 2])
    tokens = made(Tokens(base.pieces, ends=[2]), shared)
    assert (tokens.ids[2], tokens.end, tokens.own_ends) == (1, 2, (2,)), "its own end counts beside the common one"


def sentence_pieces(*extra: str) -> Tokenizer:
    """Words that begin with SentencePiece's space, and its bytes."""
    from transformers import PreTrainedTokenizerFast

    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "l", "e", "\n", *extra]
    backend = Backend(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def test_both_spellings_of_bytes_and_spaces() -> None:
    byte_level, sentence = byte_tokenizer(extra=["\u0120le", "\u0120left"]), sentence_pieces("\u2581le")
    ours, theirs = pieces_of(byte_level.backend), pieces_of(sentence.backend)
    tokens = token_map(Tokens(ours), Tokens(theirs), byte_level.size, lambda token: spelled(ours[token].data, sentence))
    names = sentence.hf.get_vocab()
    own = byte_level.hf.get_vocab()
    for mine, other in (("\u0120le", "\u2581le"), ("l", "l"), ("\u0120", "\u2581"), ("\u010a", "\n"), ("z", "<0x7A>")):
        assert tokens.ids[own[mine]] == names[other], mine
    assert tokens.ids[own["\u00e2"]] == names["<0xE2>"]
    assert tokens.ids[own["\u0120left"]] == NONE
    assert tokens.read([own["\u0120left"]]) == [names[t] for t in ("\u2581", "l", "e", "<0x66>", "<0x74>")]
    back = token_map(Tokens(theirs), Tokens(ours), sentence.size, lambda token: [0])
    assert back.ids[names["\u2581le"]] == own["\u0120le"]
    assert back.ids[names["</s>"]] == NONE


@pytest.mark.parametrize(("data", "text"), [(b" le", " le"), (b"l\n", "l\n"), (b"\xe2\x82", None), (b"", "\ufffd")])
def test_what_is_read_instead_is_the_same_text(data: bytes, text: str | None) -> None:
    for tokenizer in (byte_tokenizer(), sentence_pieces("\u2581le")):
        ids = spelled(data, tokenizer)
        if text is None:
            assert [tokenizer.bytes_of(token) for token in ids] == [b"\xe2", b"\x82"]
        else:
            before = tokenizer.encode("l")
            whole, alone = tokenizer.decode([*before, *ids]), tokenizer.decode(before)
            assert whole == alone + text
