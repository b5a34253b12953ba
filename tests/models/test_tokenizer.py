"""What tokenizers keep of the texts that they have read."""

from __future__ import annotations

import random
import string

from motet.heap import heap_bytes
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
