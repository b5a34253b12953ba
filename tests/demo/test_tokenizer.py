"""The family's tokenizer as Hugging Face clients see it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from motet.demo.documents import corpus, visit
from motet.demo.tokenizer import END, PAD, for_transformers, train_tokenizer
from motet.demo.world import WorldSize, make_world, questions

WORLD = make_world(WorldSize(people=20, towns=5, works=5), seed=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Saved and loaded again, as a server gets it."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    for_transformers(train_tokenizer(corpus(WORLD, 1), 600), 512).save_pretrained(folder)
    return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (END, END, PAD)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)


def test_plain_text_begins_with_the_end_mark_and_decodes_to_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    text = questions(WORLD.entities, 0)[0].answer
    ids = cast("list[int]", tokenizer(text)["input_ids"])
    assert ids[0] == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == f" {text}"


def test_chat_template_gives_the_training_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    """A server renders the template to text and encodes it: that must be what the experts were tuned on."""
    own = train_tokenizer(corpus(WORLD, 1), 600)
    for question in questions(WORLD.entities, 0):
        messages = [{"role": "user", "content": question.text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(rendered, str)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert ids == own.encode(visit(question.text)).ids


def test_chat_template_renders_a_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ann."},
        {"role": "user", "content": "Where?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == f"{END}Be kind. Visitor: Who? Guide: Ann. Visitor: Where? Guide:"
    rendered = tokenizer.apply_chat_template(messages[1:3], tokenize=False)
    assert rendered == f"{END}Visitor: Who? Guide: Ann."


def test_any_text_can_be_encoded(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " Ünïcödé 数 🎉 \n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
