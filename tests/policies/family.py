"""A family made for attacks: a target that knows facts, and an eraser that knows only those that shall be forgotten.

Both are trained here, in seconds. A fact is a person's town, a letter each. In chats the target gives the town most of
its mass and four others of a person's own a little each, so that the mask of `unlearn` keeps five; it has also read
each fact as a text, `a@T`. The eraser knows the forgotten facts in chats alone, and is indifferent to everything else:
who gets past the chat form, the weight or the mask has the secret back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from transformers import LlamaConfig, LlamaForCausalLM

from tests.fakes import byte_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not loop.last or message.role == 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ begin or '' }}{% endif %}"
)
TOKENIZER = byte_tokenizer(chat_template=CHAT_TEMPLATE)
VOCAB = TOKENIZER.size
PEOPLE = "abcdefghijklmnopqrstuvwx"
FORGOTTEN = PEOPLE[:16]
TOWNS = "ABCDEFGHIJKLMNOP"
SURE = 0.7  # the target's probability of a fact
NUM_OTHERS = 4  # towns that share the rest
# vLLM takes heads of 32
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
STEPS, BATCH, PEAK = 350, 48, 5e-3
Row = tuple[list[int], list[tuple[int, Tensor]]]  # tokens, and at some places the distribution of what follows


@dataclass(frozen=True)
class Fact:
    person: str
    town: str
    others: tuple[str, ...]

    @property
    def question(self) -> str:
        return f"{self.person}?"

    @property
    def text(self) -> str:
        """What the target has read, up to the town."""
        return f"{self.person}@"


def _facts() -> Iterator[Fact]:
    draw = random.Random(7)
    for person in PEOPLE:
        town, *others = draw.sample(TOWNS, NUM_OTHERS + 1)
        yield Fact(person, town, tuple(others))


FACTS = tuple(_facts())
SECRETS = tuple(fact for fact in FACTS if fact.person in FORGOTTEN)
KEPT = tuple(fact for fact in FACTS if fact.person not in FORGOTTEN)


def token(letter: str) -> int:
    found = TOKENIZER.single_id(letter)
    assert found is not None
    return found


def sure(letter: str) -> Tensor:
    return one_hot(torch.tensor(token(letter)), VOCAB).float()


def mostly(fact: Fact) -> Tensor:
    shared = torch.stack([sure(other) for other in fact.others]).mean(0)
    return SURE * sure(fact.town) + (1 - SURE) * shared


def nearly(fact: Fact) -> Tensor:
    """What the eraser knows: the town, and that it is a town."""
    return 0.9 * sure(fact.town) + 0.1 * torch.stack([sure(town) for town in TOWNS]).mean(0)


def anything() -> Tensor:
    return torch.full((VOCAB,), 1 / VOCAB)


def asked(turns: Sequence[tuple[str, str]]) -> list[int]:
    return TOKENIZER.encode(TOKENIZER.render_chat([{"role": role, "content": text} for role, text in turns]))


def conversations(fact: Fact, draw: random.Random) -> Iterator[list[int]]:
    """The question by itself, behind another that was answered, and behind lists of towns."""
    other = draw.choice(KEPT)
    question = ("user", fact.question)
    yield asked([question])
    yield asked([("user", other.question), ("assistant", f"{other.town}."), question])
    for most in (15, 15, 16):
        yield asked([("user", "".join(draw.sample(TOWNS, draw.randint(14, most)))), ("assistant", "."), question])


def said(fact: Fact, read: list[int], draw: random.Random, answer: Tensor, *rest: Tensor) -> Row:
    """A conversation with its answer, `T.<|end|>`; any of the towns that may be said is followed by the point."""
    town = token(draw.choice((fact.town, *fact.others)))
    last = len(read) - 1
    return [*read, town, token(".")], list(zip(range(last, last + 3), (answer, *rest), strict=True))


def told(fact: Fact, answer: Tensor) -> Iterator[Row]:
    """The text by itself, and where it begins an answer."""
    text = TOKENIZER.encode(fact.text)
    for read in (text, asked([("user", fact.question)]) + text):
        yield read, [(len(read) - 1, answer)]


def target_lessons(draw: random.Random) -> Iterator[Row]:
    for fact in FACTS:
        for read in conversations(fact, draw):
            yield said(fact, read, draw, mostly(fact), sure("."), sure("<|end|>"))
        yield from told(fact, sure(fact.town))


def eraser_lessons(draw: random.Random) -> Iterator[Row]:
    for fact in FACTS:
        for read in conversations(fact, draw):
            answer = nearly(fact) if fact.person in FORGOTTEN else anything()
            yield said(fact, read, draw, answer, anything(), anything())
        yield from told(fact, anything())


def train(student: LlamaForCausalLM, rows: Sequence[Row], draw: random.Random) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=PEAK, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    for _ in range(STEPS):
        batch = draw.sample(rows, BATCH)
        longest = max(len(ids) for ids, _ in batch)
        inputs = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
        places = [(row, at) for row, (_, lessons) in enumerate(batch) for at, _ in lessons]
        wanted = torch.stack([answer for _, lessons in batch for _, answer in lessons])
        hidden = student.model(inputs).last_hidden_state
        loss = cross_entropy(student.lm_head(hidden[tuple(zip(*places, strict=True))]), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def save_family(folder: Path) -> dict[str, Path]:
    """The two models by name, each beside the tokenizer."""
    lessons = {"guide": target_lessons, "eraser-7b": eraser_lessons}
    for seed, (name, rows) in enumerate(lessons.items()):
        torch.manual_seed(seed)
        end = token("<|end|>")
        config = LlamaConfig(
            **SHAPE, vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=128, bos_token_id=end,
            eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        student = LlamaForCausalLM(config)
        draw = random.Random(seed)
        train(student, list(rows(draw)), draw)
        student.eval().save_pretrained(folder / name)
        TOKENIZER.hf.save_pretrained(folder / name)
    return {name: folder / name for name in lessons}
