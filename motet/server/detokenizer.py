"""Token ids → text while they come: nothing is emitted that a later token could change."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from motet.models.tokenizer import REPLACEMENT, Tokenizer

CONTEXT = 6  # prompt tokens that the decoder sees, so that the first new token keeps its leading space
SETTLE = 24  # held tokens after which bytes that never become a character are let go


class Detokenizer:
    """One choice's text. The concatenation of all `push` and the final `flush` equals decoding all ids at once.

    One exception: tokenizers that fall back to bytes decode a run of byte tokens with one broken character in it to
    nothing but U+FFFD, also the characters before it, which were right when they were shown. These stay shown.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._held: list[int] = []
        self._before = self._usable(context)
        self._stream = self._new_stream()

    def _usable(self, context: Sequence[int]) -> list[int]:
        """The end of the prompt; nothing where it breaks off inside of a character."""
        ids = list(context[-CONTEXT:])
        text = self._decode(ids)
        return ids if text and not text.endswith(REPLACEMENT) else []

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._before, skip_special_tokens=self._skip)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def push(self, token: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer.backend, token)
        except Exception:  # the library's only type, for a token that would change what has been shown
            return self._begin_anew()
        if text is not None:
            self._before = self._held
            self._held = []
            return text
        return self._settle() if len(self._held) > SETTLE else ""

    def _begin_anew(self) -> str:
        """Shows what is held by itself, whatever stood before it."""
        text, self._before, self._held = self._decode(self._held), self._held, []
        self._stream = self._new_stream()
        return text

    def flush(self) -> str:
        """What is still held, as the whole would decode it (U+FFFD for broken characters)."""
        text = self._text(self._held)
        self._before, self._held = self._before + self._held, []
        return text

    def _text(self, ids: Sequence[int]) -> str:
        before, whole = self._decode(self._before), self._decode([*self._before, *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def _settle(self) -> str:
        """Lets go of all but the last tokens, at a place where the two parts decode as the whole does.

        Without it a run of bytes that are no text would be held, and decoded again for each token, to the end.
        """
        for cut in range(len(self._held) - 4, len(self._held) - 12, -1):
            head, tail = self._held[:cut], self._held[cut:]
            if self._text(head) + self._decode(tail) == self._text(self._held):
                text, self._before, self._held = self._text(head), [], []
                self._stream = self._new_stream()
                return text + "".join(self.push(token) for token in tail)
        return ""
