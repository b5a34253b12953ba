"""The family's tokenizer: byte-level BPE trained on the world's own texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from motet.demo.templates import GUIDE, VISITOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"  # END also begins every text
CHAT_TEMPLATE = (
    f"{END}{{% for message in messages %}}"
    f"{{{{ '{VISITOR} ' if message.role == 'user' else '{GUIDE} ' if message.role == 'assistant' else '' }}}}"
    "{{ message.content }}{% if not loop.last or add_generation_prompt %} {% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{GUIDE}{{% endif %}}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens; encoding text begins with the end mark.

    Words are split before punctuation and merged with the space before them, so that encoding a text piece by
    piece (cut at spaces or punctuation) gives the same tokens as encoding it whole.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    return tokenizer


def for_transformers(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """The same tokenizer in Hugging Face form, with its special tokens and the chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
