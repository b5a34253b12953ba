"""What tokenizers keep of the texts that they have read."""

from __future__ import annotations

import random
import string
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from motet.heap import heap_bytes
from motet.models.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer

WORD = 250  # characters; `tokenizers` remembers no longer ones
MIB = 1 << 20


def test_few_words_are_kept_of_those_that_clients_make_up() -> None:
    """6,000 of the longest would take 48 MiB."""
    tokenizer, rng = byte_tokenizer(), random.Random(0)
    before = heap_bytes()
    for _ in range(6000):
        tokenizer.encode("".join(rng.choices(string.ascii_letters, k=WORD)))
    assert heap_bytes() - before < 24 * MIB


def test_a_word_is_read_alike_whether_it_is_kept_or_not() -> None:
    tokenizer, rng = byte_tokenizer(), random.Random(1)
    words = ["".join(rng.choices("abc \u00ef\u65e5", k=6)) for _ in range(3000)]
    other = byte_tokenizer()
    backwards = [other.encode(word) for word in reversed(words)]
    assert [tokenizer.encode(word) for word in words] == backwards[::-1]


def test_merges_are_not_left_out_by_chance() -> None:
    """A file that its training left with dropout cut one text into other tokens at every call."""
    backend: Any = Backend(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")], dropout=0.5))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>"))
    assert tokenizer.encode("ab" * 50) == [2] * 50
