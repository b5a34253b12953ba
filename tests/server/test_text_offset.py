"""`text_offset` indexes the text that is returned: echoed, generated, cut by a stop, in bytes and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from motet.models.tokenizer import Tokenizer
from motet.server.text import echo_offsets
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, fake_member
from tests.server.conftest import World


def pieces() -> Tokenizer:
    """As Llama 2's: a space before every text, unknown characters as bytes, BOS."""
    letters = "abdeinostwHi<|>user"
    tokens = [
        "<unk>",
        "<s>",
        "▁",
        "▁b",
        "▁t",
        "wo",
        *dict.fromkeys(letters),
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    merges = [("▁", "b"), ("▁", "t"), ("w", "o")]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend: Any = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>"))


BYTES, PIECES = byte_tokenizer(), pieces()


def cut(text: str, offsets: list[int]) -> list[str]:
    assert offsets == sorted(offsets)
    assert offsets[-1] <= len(text)
    return [text[begin:end] for begin, end in zip(offsets, [*offsets[1:], len(text)], strict=True)]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["two boats", "a 😀 é  b", "<|user|>Hi<|end|>", "  lead", "é", "a\n\n b "])
def test_prompts(tokenizer: Tokenizer, special: bool, text: str) -> None:
    """Tokens tile the text; one whose text is whole is that part of it."""
    ids = tokenizer.encode(text, add_special_tokens=special)
    for shown, offsets in (
        (text, echo_offsets(ids, text, tokenizer)),
        (tokenizer.decode(ids), echo_offsets(ids, None, tokenizer)),
    ):
        parts = cut(shown, offsets)
        assert "".join(parts) == shown
        for token, part in zip(ids, parts, strict=True):
            whole = tokenizer.text_of(token)
            assert part in (whole, whole.lstrip(), "") or "\ufffd" in whole


@pytest.mark.parametrize(
    ("tokenizer", "tokens", "parts"),
    [
        (
            BYTES,
            [b"\xf0", b"b", b"\xc3", b"\xe2", b"a", b"\xc3", b"\xa9"],
            ["\ufffd", "b", "", "\ufffd" * 2, "a", "", "é"],
        ),
        (PIECES, ["t", "<0xF0>", "<0x9F>", "wo", "<0xC3>", "▁b"], ["t", "", "\ufffd\ufffd", "wo", "\ufffd", " b"]),
    ],
    ids=["bytes", "pieces"],
)
def test_whole_tokens_begin_behind_broken_characters(tokenizer: Tokenizer, tokens: list[Any], parts: list[str]) -> None:
    """Bytes that become no character are shown as U+FFFD, which the next token counted as its own."""
    names = {
        tokenizer.bytes_of(i) if tokenizer is BYTES else tokenizer.backend.id_to_token(i): i
        for i in range(tokenizer.size)
    }
    ids = [names[token] for token in tokens]
    assert cut(tokenizer.decode(ids), echo_offsets(ids, None, tokenizer)) == parts


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"prompt": "é😀"}, ["", "é", "", "", "", "😀", "b", "ü"]),
        ({"prompt": "<|user|>a"}, ["<|user|>", "a", "b", "ü"]),
        ({"prompt": "xyz", "truncate_prompt_tokens": 2}, ["y", "z", "b", "ü"]),
        ({"prompt": "a", "echo": False}, ["b", "ü"]),
        ({"prompt": "a", "stop": "ü"}, ["a", "b", ""]),
    ],
)
async def test_answers(world: World, body: dict[str, Any], parts: list[str]) -> None:
    world.script("large", "bü")
    fixed = {"model": "large", "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 0}
    choice = (await world.post("/v1/completions", **fixed | body)).json()["choices"][0]
    got = cut(choice["text"], choice["logprobs"]["text_offset"])
    assert [part for part in got if part] == [part for part in parts if part]
    assert got[: len(parts) - 1] == parts[:-1]


PROXY = {"strategy": "product", "members": [{"model": "pieces", "template": "chat"}]}
TRIMMED = "{% for message in messages %}user:\n{{ message.content | trim }}{% endfor %}\nuser:"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMMED])
@pytest.mark.parametrize("text", ["two boats", "user", "  lead ", "a 😀 é"])
async def test_a_template_around_the_prompt_has_no_place_in_it(world: World, text: str, template: str) -> None:
    """The text alone is echoed, and its tokens are those of the whole: there they are cut otherwise."""
    tokenizer = pieces()
    tokenizer.hf.chat_template = template
    member = fake_member("pieces", tokenizer)
    members: Any = world.service.registry.members
    members["pieces"] = member
    world.engine.infos["pieces"] = member.info
    body = {"prompt": text, "composition": PROXY, "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = await world.post("/v1/completions", **body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["text"] == text
    parts = cut(text, choice["logprobs"]["text_offset"])
    rendered = tokenizer.render_chat([{"role": "user", "content": "?"}])
    before, behind = (len(tokenizer.encode(part)) for part in rendered.split("?"))
    assert not any(part.strip() for part in (*parts[: before - 1], *parts[len(parts) - behind + 2 :]))
    read = [(token, part) for token, part in zip(choice["logprobs"]["tokens"], parts, strict=True) if part.strip()]
    assert "".join("".join(part.split()) for _, part in read) == "".join(text.split())
    for token, part in read:
        assert part.strip() == token.strip() or token.startswith(("bytes:", "<0x")), read


@pytest.mark.parametrize(
    ("text", "offsets"), [("e\u0301a", [0, 2]), ("ae\u0301 b", [0, 1, 3]), ("e\u0301\u0301 a", [0, 2, 3])]
)
def test_a_mark_belongs_to_the_letter_that_has_swallowed_it(text: str, offsets: list[int]) -> None:
    """A tokenizer that composes, as Qwen's."""
    vocab = {token: i for i, token in enumerate(["é", "a", "\u0301", " b", " a"])}
    backend: Any = Backend(models.WordLevel(vocab, unk_token="a"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[^ ]"), "isolated")
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert echo_offsets(tokenizer.encode(text), text, tokenizer) == offsets


async def test_special_tokens_that_are_shown(world: World) -> None:
    fixed = {"model": "large", "prompt": "a", "temperature": 0, "logprobs": 0, "ignore_eos": True, "max_tokens": 3}
    world.script("large", "")
    for skip, offsets in ((False, [0, 7, 14]), (True, [0, 0, 0])):
        answer = await world.post("/v1/completions", **fixed, skip_special_tokens=skip)
        assert answer.json()["choices"][0]["logprobs"]["text_offset"] == offsets
