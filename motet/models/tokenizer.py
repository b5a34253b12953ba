"""One model's tokenizer as the server uses it: text ↔ ids, chat rendering, exact text and bytes of one token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motet.models.chat_template import ChatTemplate, text_parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
SHORT = 4096  # characters or tokens that take less than a few milliseconds
# different words whose pieces `tokenizers` keeps, for ever and twice over: up to 8 KiB of one that a client makes up.
# It would keep 10,000; with a tenth of them a text takes a quarter longer
REMEMBERED_WORDS = 1000
LINE = "\n"  # no token that such a tokenizer merges with what follows
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ChatTemplateError(ValueError):
    """The chat template refused the messages; the message is the template's own."""


@lru_cache(1)
def byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019), as byte-level tokenizers store them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def take_off_dropout(backend: Backend) -> None:
    """Merges are never left out by chance (Provilkov et al. 2020, arXiv:1910.13267): a text has the same tokens at
    every call. Like truncation and padding, a file keeps it from the script that trained with it last."""
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None


class Tokenizer:
    """Wraps a fast Hugging Face tokenizer. Its own calls go to the Rust object, which threads may share: the Python
    wrapper changes truncation state on every call. Truncation, padding and dropout that the file stores are settings of
    whoever trained with it last, and are taken off."""

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        """Raises ValueError where the tokenizer has no fast implementation."""
        backend: Backend | None = getattr(hf, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{hf.name_or_path} has no fast tokenizer (tokenizer.json)")
        backend.no_truncation()
        backend.no_padding()
        take_off_dropout(backend)
        limit = getattr(backend.model, "_resize_cache", None)  # BPE and Unigram have one
        if limit is not None:
            limit(REMEMBERED_WORDS)
        self.hf = hf
        self.backend = backend
        self.text_of = lru_cache(65536)(self._text_of)
        self.spelling = lru_cache(8)(self._spelling)

    @classmethod
    def load(cls, path: str | Path, revision: str | None = None) -> Tokenizer:
        """Raises OSError, ValueError, and whatever its parsers raise."""
        from motet.models.checkpoint import read_tokenizer

        return cls(read_tokenizer(str(path), revision))

    @property
    def size(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def chat_template(self) -> Any:
        """The template's source, or a mapping of named ones."""
        return cast(Any, self.hf).chat_template

    @cached_property
    def template(self) -> ChatTemplate:
        """What the chat template can say."""
        return ChatTemplate(self.hf)

    @property
    def start_id(self) -> int | None:
        """What an empty text begins with: BOS, or EOS for models that have no BOS."""
        bos: int | None = self.hf.bos_token_id  # type: ignore[assignment]
        eos: int | None = self.hf.eos_token_id  # type: ignore[assignment]
        return eos if bos is None else bos

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text. Other threads run meanwhile: `tokenizers` keeps the interpreter in `encode`, for a second per
        megabyte, and gives it free in its calls for many texts."""
        if len(text) <= SHORT:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        if len(ids) <= SHORT:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return self.backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0]

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token as the vocabulary spells it; so many tokens read at most so many times as
        many characters. (A byte-level vocabulary spells every byte as one.)"""
        return max(map(len, self.backend.get_vocab()), default=1)

    def single_id(self, text: str) -> int | None:
        """The id of a text that is exactly one token, else None."""
        if (token := self.backend.token_to_id(text)) is not None:
            return token
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Contents are texts; a template that walks over parts gets them as such. Raises ChatTemplateError where the
        template refuses (roles that must alternate, an unknown role)."""
        try:
            rendered = self.hf.apply_chat_template(
                [self._as_read(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(variables or {}),
            )
        except Exception as error:  # a template is the checkpoint's own program, run on the client's data
            raise ChatTemplateError(f"the chat template failed: {error}") from error
        return str(rendered)

    def _as_read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str) and self.template.reads_parts(str(message.get("role"))):
            return {**message, "content": text_parts(content)}
        return dict(message)

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """Tokens before a token, so that decoders which strip a leading space leave the token's own."""
        ids = self.encode("a")[-1:]
        return ids, self.decode(ids)

    def _text_of(self, token: int) -> str:
        """The token's text where it stands behind other text; has U+FFFD where its bytes are not whole characters."""
        ids, before = self._anchor
        return self.decode([*ids, token])[len(before) :]

    def _spelling(self, marks: tuple[str, ...], size: int) -> tuple[tuple[int, str], ...]:
        """The tokens below `size`, with their texts, that can be parts of the marks, and white space. Of a large
        vocabulary this takes a moment: not for an event loop."""
        ids, before = self._anchor
        decoded = self.backend.decode_batch([[*ids, token] for token in range(size)], skip_special_tokens=False)
        texts = (text[len(before) :] for text in decoded)
        return tuple((token, text) for token, text in enumerate(texts) if text.isspace() or _spells(text, marks))

    def offsets_in(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Where each token begins in the text that it is read from, special tokens included, in characters; tokens that
        are parts of one character share its place. As `tokenizers` has it, but for what it leaves out: spaces belong to
        the token behind them, and marks that a letter has swallowed to that letter."""
        begins: list[int] = []
        reached = 0
        for begin, end in self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].offsets:
            if begins and end > begin > reached:
                reached += len(text[reached:begin].rstrip())
            begins.append(begin if begin < min(reached, end) else reached)
            reached = max(reached, end)
        return begins

    def encode_behind(self, text: str) -> list[int]:
        """Ids of a text that other text stands before: without the space that tokenizers as Llama 2's set before every
        text."""
        before = self.encode(LINE)
        ids = self.encode(LINE + text) if self._sets_a_space else []
        return ids[len(before) :] if ids[: len(before)] == before else self.encode(text)

    @cached_property
    def _sets_a_space(self) -> bool:
        ids, before = self._anchor
        return self.decode([*ids, *self.encode("b")])[len(before) :] == " b"

    @cached_property
    def appended(self) -> str:
        """What it sets behind every text, such as EOS; mostly nothing."""
        plain, whole = self.encode("a"), self.encode("a", add_special_tokens=True)
        begin = next(n for n in range(len(whole) + 1) if whole[n : n + len(plain)] == plain or n == len(whole))
        return "".join(map(self.text_of, whole[begin + len(plain) :]))

    @cached_property
    def _added_ids(self) -> Mapping[str, int]:
        return {content.content: token for token, content in self.backend.get_added_tokens_decoder().items()}

    def added_id(self, text: str) -> int | None:
        """The id of a token that was added to the vocabulary: texts are cut around it, whatever stands beside it."""
        return self._added_ids.get(text)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, content in added.items() if content.special)

    def parts_turns(self, text: str) -> bool:
        """Whether a text, inside of a message, would part the turns of a conversation: it holds special tokens, or what
        the chat template opens an answer with."""
        opens = self._answer_mark is not None and self._answer_mark in text
        return opens or not self.special_ids.isdisjoint(self.encode(text))

    @cached_property
    def _answer_mark(self) -> str | None:
        """What the chat template opens an answer with; None where that is nothing that can be seen."""
        if not self.has_chat_template:
            return None
        asked = [{"role": "user", "content": "a"}]
        try:
            closed, opened = self.render_chat(asked, add_generation_prompt=False), self.render_chat(asked)
        except ChatTemplateError:
            return None
        return (opened.removeprefix(closed).strip() or None) if opened.startswith(closed) else None

    def bytes_of(self, token: int) -> bytes:
        """The token's own bytes, also where they are no whole characters."""
        text = self.text_of(token)
        if REPLACEMENT not in text:
            return text.encode()
        name = self.backend.id_to_token(token) or ""
        if match := BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        table = byte_of_char()
        return bytes(table[char] for char in name) if all(char in table for char in name) else text.encode()

    def label_of(self, token: int) -> str:
        """The text, or `bytes:\\xe2\\x82` for parts of characters, so that distinct tokens keep distinct names."""
        text = self.text_of(token)
        if REPLACEMENT not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token))


def _spells(text: str, marks: Sequence[str]) -> bool:
    """Whether a token's text can be a part of one of the marks, or have a part of it at one of its ends."""
    for mark in marks:
        if text and (text in mark or mark in text):
            return True
        if mark[0] in text or mark[-1] in text:
            sizes = range(1, len(mark))
            if any(text.endswith(mark[:size]) or text.startswith(mark[-size:]) for size in sizes):
                return True
    return False
