"""Text that comes token by token equals the text decoded at once, and is never taken back."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from motet.models.tokenizer import Tokenizer
from motet.server.text import Detokenizer
from tests.fakes import byte_tokenizer

WORDS = ["<unk>", "▁the", "▁a", "▁", "s", "ing", "▁Grü", "ß", "e"]


@cache
def byte_level() -> Tokenizer:
    return byte_tokenizer()


@cache
def byte_fallback() -> Tokenizer:
    """SentencePiece-like: words with their space in front, other characters as byte tokens."""
    tokens = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def tokens_of_text(text: str) -> list[int]:
    """Byte-fallback ids of a text, every character as its bytes."""
    return [len(WORDS) + byte for byte in text.encode()]


@given(st.lists(st.integers(0, 259), max_size=80))
def test_any_tokens_decode_as_the_whole(ids: list[int]) -> None:
    assert "".join(pieces(byte_level(), ids, [])) == byte_level().decode(ids, skip_special_tokens=True)


@given(
    st.lists(
        st.integers(1, len(WORDS) - 1).map(lambda i: [i]) | st.characters(codec="utf-8").map(tokens_of_text),
        max_size=30,
    )
)
def test_byte_fallback_decodes_as_the_whole(parts: list[list[int]]) -> None:
    ids = [token for part in parts for token in part]
    assert "".join(pieces(byte_fallback(), ids, [])) == byte_fallback().decode(ids)


@given(st.lists(st.integers(0, len(WORDS) + 255), max_size=80))
def test_byte_fallback_with_broken_characters_loses_no_word(ids: list[int]) -> None:
    shown = "".join(pieces(byte_fallback(), ids, []))
    for word in ("the", "ing", "Grü"):
        token = next(i for i, name in enumerate(WORDS) if name.strip("▁") == word)
        assert shown.count(word) >= ids.count(token)


@given(st.text(max_size=60))
def test_text_decodes_as_the_whole(text: str) -> None:
    ids = byte_level().encode(text)
    assert "".join(pieces(byte_level(), ids, [])) == text


@given(data=st.data())
def test_long_runs_of_broken_characters(data: st.DataObject) -> None:
    """Bytes that never become characters are let go while they come, and still decode as the whole."""
    tokenizer = byte_level()
    broken = [token for token in range(tokenizer.size) if b"\x80" <= tokenizer.bytes_of(token) <= b"\xff"]
    ids = data.draw(st.lists(st.sampled_from(broken), min_size=60, max_size=120))
    assert "".join(pieces(tokenizer, ids, [])) == tokenizer.decode(ids, skip_special_tokens=True)


def test_broken_characters_are_not_held_to_the_end() -> None:
    """A byte that begins no character, over and over: what is held stays bounded, so that a step stays cheap."""
    shown = pieces(byte_level(), byte_level().encode("é")[-1:] * 200, [])
    longest = max(len(run) for run in "".join("x" if text else " " for text in shown).split("x"))
    assert longest < 40


def test_incomplete_characters_are_held_back() -> None:
    assert pieces(byte_level(), byte_level().encode("a€"), []) == ["a", "", "", "€", ""]


def test_the_first_token_keeps_its_space() -> None:
    the, a = WORDS.index("▁the"), WORDS.index("▁a")
    assert pieces(byte_fallback(), [a], [the])[0] == " a"
    assert pieces(byte_fallback(), [a], [])[0] == "a"


def test_a_prompt_that_ends_inside_of_a_character_is_no_context() -> None:
    cut, rest = byte_level().encode("x€")[:-1], byte_level().encode("€")[-1:]
    assert "".join(pieces(byte_level(), [*rest, *byte_level().encode("y")], cut)) == "\ufffdy"


def test_bytes_and_labels_of_tokens() -> None:
    for tokenizer in (byte_level(), byte_fallback()):
        names = [tokenizer.label_of(token) for token in range(tokenizer.size)]
        whole = [name for name in names if name.startswith("bytes:")]
        assert len(set(whole)) == len(whole) == 128
    euro = byte_level().encode("€")
    assert b"".join(byte_level().bytes_of(token) for token in euro).decode() == "€"
    assert byte_fallback().text_of(WORDS.index("▁the")) == " the"
