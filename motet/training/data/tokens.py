"""What rendering asks of a tokenizer: batches of ids, the tokens that begin and end documents, the chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from motet.models.chat_template import PROBE, ChatTemplate
from motet.models.tokenizer import take_off_dropout
from motet.training.data.errors import DataError
from motet.training.data.messages import Message, Messages, Tools, as_chat

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

GENERATION = re.compile(r"\{%-?\s*generation\b")


class Tokens:
    """A fast Hugging Face tokenizer. Texts are always encoded without special tokens; documents get their own."""

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        """Raises DataError where the tokenizer has no fast implementation or no end-of-text token."""
        backend: Tokenizer | None = getattr(hf, "backend_tokenizer", None)
        eos = cast("int | None", hf.eos_token_id)
        if backend is None or eos is None:
            lacking = "fast implementation (tokenizer.json)" if backend is None else "end-of-text token"
            raise DataError([f"the tokenizer {hf.name_or_path} has no {lacking}"])
        take_off_dropout(backend)
        self.hf, self.eos = hf, eos
        self._backend = _whole(backend)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [encoding.ids for encoding in self._encode(texts)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids, and the characters (start, stop) of each token."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        return self._backend.encode_batch_fast(list(texts), add_special_tokens=False)

    @cached_property
    def prefix(self) -> list[int]:
        """What the tokenizer sets before a text by itself: BOS, or nothing."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
        return []

    @cached_property
    def start(self) -> list[int]:
        """What an empty prompt is read as: the tokenizer's own beginning, or BOS, or EOS for models without BOS."""
        bos = cast("int | None", self.hf.bos_token_id)
        return self.prefix or [self.eos if bos is None else bos]

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """Texts of the special tokens."""
        added = self._backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    @property
    def has_chat_template(self) -> bool:
        return bool(cast(Any, self.hf).chat_template)

    @property
    def marks_answers(self) -> bool:
        """Whether the chat template says itself which tokens are the assistant's."""
        template = cast(Any, self.hf).chat_template
        return isinstance(template, str) and GENERATION.search(template) is not None

    @cached_property
    def turn_end(self) -> int | None:
        """The special token that the chat template writes behind an answer, None where it writes none."""
        try:
            text = self.render((Message("user", PROBE), Message("assistant", PROBE)), for_answer=False)
        except ValueError:
            return None
        before, _, behind = text.rpartition(PROBE)
        added = self._backend.get_added_tokens_decoder()
        return next((token for token in self.encode([behind])[0] if token in added), None) if before else None

    @cached_property
    def template(self) -> ChatTemplate:
        """What the chat template can say."""
        return ChatTemplate(self.hf)

    def render(self, messages: Messages, tools: Tools = (), *, for_answer: bool) -> str:
        """The chat template's text of the messages, with the beginning of an answer behind them where asked for.

        Raises:
            ValueError: the template refuses the messages.
        """
        return str(self._apply(messages, tools, tokenize=False, add_generation_prompt=for_answer))

    def _apply(self, messages: Messages, tools: Tools, **options: Any) -> object:
        chat = as_chat(messages, in_parts=self.template.reads_parts)
        try:
            return self.hf.apply_chat_template(chat, tools=cast(Any, list(tools) or None), **options)
        except Exception as error:  # a template is the checkpoint's own program, run on the row's data
            raise ValueError(f"the chat template refuses the messages: {error}") from error

    def trimmed(self, text: str) -> str:
        """Without the blanks that a template writes behind its last special token."""
        bare = text.rstrip()
        return bare if bare.endswith(self.specials) else text

    def answer_mask(self, messages: Messages, tools: Tools = ()) -> tuple[list[int], list[bool]]:
        """Ids of the rendered messages, and which of them the template marks as the assistant's.

        Raises:
            ValueError: the template refuses the messages.
        """
        marked = self._apply(messages, tools, return_dict=True, return_assistant_tokens_mask=True)
        encoded = cast("dict[str, list[int]]", marked)
        return encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]]


def _whole(backend: Tokenizer) -> Tokenizer:
    """A tokenizer that neither truncates nor pads, whatever its file says."""
    if backend.truncation is None and backend.padding is None:
        return backend
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
