"""What each stream reads: templates, overrides, and the limits of both."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from motet.composers.plan import Plan, Prompt, Stream
from motet.models.tokenizer import Tokenizer
from motet.operator.loaded import LoadedModel, Template
from motet.server import encodings as encodings_module
from motet.server.continuations import continuation
from motet.server.encodings import PIECE, TOKENIZING, Encodings, tokenized
from motet.server.http.errors import ApiError
from motet.server.prompts import contexts
from motet.server.query import RequestPrompt
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, fake_member
from tests.server.conftest import World

MESSAGES = ({"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"})
EMPTY = {"role": "user", "content": ""}


def with_bos() -> Tokenizer:
    """A tokenizer that begins every text with `<|end|>`, as many do with BOS."""
    tokenizer = byte_tokenizer()
    special = [("<|end|>", tokenizer.single_id("<|end|>") or 0)]
    tokenizer.backend.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=special)
    return tokenizer


def without_marks() -> Tokenizer:
    """A tokenizer without BOS and EOS."""
    hf: Any = byte_tokenizer().hf
    hf.bos_token = hf.eos_token = None
    return Tokenizer(hf)


def as_trained() -> Tokenizer:
    """A tokenizer whose file keeps the truncation and padding of the script that trained with it last."""
    hf: Any = byte_tokenizer().hf
    hf.backend_tokenizer.enable_truncation(4)
    hf.backend_tokenizer.enable_padding(length=12, pad_token="<|end|>")
    return Tokenizer(hf)


def spacing() -> Tokenizer:
    """A tokenizer that sets a space before every text, as Llama 2's does."""
    tokenizer = byte_tokenizer()
    cast(Any, tokenizer.backend).pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    return tokenizer


MEMBERS: dict[str, LoadedModel] = {
    "plain": fake_member("plain", byte_tokenizer()),
    "chat": fake_member("chat", byte_tokenizer(), "chat"),
    "bos": fake_member("bos", with_bos(), "chat"),
    "bare": fake_member("bare", byte_tokenizer(chat_template=None)),
    "endless": fake_member("endless", without_marks()),
    "spacing": fake_member("spacing", spacing()),
    "cut": fake_member("cut", as_trained()),
}


def read(model: str, own: Prompt | None = None, **request: Any) -> str:
    """What one stream reads, decoded."""
    plan = Plan((Stream("base", model, prompt=own),))
    return MEMBERS[model].tokenizer.decode(contexts(plan, RequestPrompt(**request), MEMBERS, Encodings())[0])


def test_names_are_changed_for_one_stream() -> None:
    swaps = (("kind", "brief"), ("Hi", "Bye"))
    assert read("chat", Prompt(swaps=swaps), messages=MESSAGES) == "<|system|>Be brief<|user|>Bye<|assistant|>"
    assert read("plain", Prompt(swaps=swaps), text="Hi, Hilda") == "Bye, Hilda"
    assert read("plain", Prompt(text="Hi", swaps=swaps), text="You") == "Bye"
    with pytest.raises(ApiError, match="send text, not tokens"):
        read("plain", Prompt(swaps=swaps), tokens=(3, 4))


@pytest.mark.parametrize(
    ("model", "own", "expected"),
    [
        ("plain", None, "Be kind\nHi"),
        ("chat", None, "<|system|>Be kind<|user|>Hi<|assistant|>"),
        ("bos", None, "<|system|>Be kind<|user|>Hi<|assistant|>"),  # a chat template writes its own BOS
        ("chat", Prompt(template="plain"), "Be kind\nHi"),
        ("bos", Prompt(template="plain"), "<|end|>Be kind\nHi"),
        ("plain", Prompt(template="chat"), "<|system|>Be kind<|user|>Hi<|assistant|>"),
        ("plain", Prompt(text="Other"), "Other"),
        ("bos", Prompt(text="Other"), "<|end|>Other"),
        ("plain", Prompt(text=""), "<|end|>"),
        ("bos", Prompt(text=""), "<|end|>"),
        ("chat", Prompt(messages=(("user", "Yo"),)), "<|user|>Yo<|assistant|>"),
        ("chat", Prompt(messages=(("user", "Yo"),), template="plain"), "Yo"),
        ("plain", Prompt(last_tokens=1), "i"),
        ("chat", Prompt(messages=(("user", "Yo"),), last_tokens=2), "o<|assistant|>"),
    ],
)
def test_messages(model: str, own: Prompt | None, expected: str) -> None:
    assert read(model, own, messages=MESSAGES) == expected


@pytest.mark.parametrize(
    ("model", "own", "expected"),
    [
        ("plain", None, "Hi"),
        ("chat", None, "Hi"),  # a model's default template is for messages
        ("bos", None, "<|end|>Hi"),
        ("plain", Prompt(template="chat"), "<|user|>Hi<|assistant|>"),
        ("plain", Prompt(last_tokens=5), "Hi"),
        ("cut", None, "Hi"),
        ("cut", Prompt(template="chat"), "<|user|>Hi<|assistant|>"),
    ],
)
def test_text(model: str, own: Prompt | None, expected: str) -> None:
    assert read(model, own, text="Hi") == expected


@pytest.mark.parametrize("model", ["plain", "bos"])
@pytest.mark.parametrize("prompt", [{"text": ""}, {"tokens": ()}, {"messages": (EMPTY,)}])
def test_an_empty_prompt_begins_a_text(model: str, prompt: dict[str, Any]) -> None:
    assert read(model, Prompt(template=None if "messages" not in prompt else "plain"), **prompt) == "<|end|>"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, "ab"),
        (Prompt(text="Other"), "ab"),
        (Prompt(messages=(("user", "Yo"),), template="plain"), "ab"),
        (Prompt(template="chat"), " ab"),  # behind a special token the tokenizer begins anew
        (Prompt(text=""), " ab"),
    ],
)
def test_a_continuation_is_what_a_text_adds_to_what_the_stream_reads(own: Prompt | None, expected: str) -> None:
    member = MEMBERS["spacing"]
    ids = continuation("ab", Stream("base", "spacing", prompt=own), member, RequestPrompt(text="Hi"), Encodings())
    assert [member.tokenizer.bytes_of(token) for token in ids] == [char.encode() for char in expected]


def merging() -> LoadedModel:
    """A tokenizer as Llama 2's whose tokens `ab` and `▁b` no cut behind the first letter leaves as they are."""
    vocab = {token: i for i, token in enumerate(["<s>", "▁", "a", "b", "ab", "▁b", "<0x0A>"])}
    merges = [("a", "b"), ("▁", "b")]
    backend: Any = Backend(models.BPE(vocab, merges, byte_fallback=True, unk_token="<s>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")
    return fake_member("merging", Tokenizer(hf))


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [
        ({"text": "a"}, "b", ["b"]),  # together they are `ab`
        ({"text": "a"}, " b", ["▁b"]),
        ({"text": "a "}, "b", ["b"]),
        ({"tokens": (1, 2)}, "b", ["b"]),
        ({"tokens": (1, 2)}, " b", ["▁b"]),
        ({"tokens": (0,)}, "b", ["▁b"]),  # behind BOS a text begins
        ({"text": ""}, "b", ["▁b"]),
    ],
)
def test_a_continuation_gets_no_space_that_nobody_wrote(prompt: dict[str, Any], text: str, tokens: list[str]) -> None:
    member = merging()
    ids = continuation(text, Stream("base", "merging"), member, RequestPrompt(**prompt), Encodings())
    assert [member.tokenizer.backend.id_to_token(token) for token in ids] == tokens


def test_special_tokens_can_be_left_out() -> None:
    assert read("bos", text="Hi", add_special_tokens=False) == "Hi"
    assert read("bos", messages=MESSAGES, add_special_tokens=True).startswith("<|end|><|system|>")
    assert read("bos", Prompt(text="Other"), text="Hi", add_special_tokens=False) == "<|end|>Other"


def test_tokens_are_read_as_they_are() -> None:
    ids = tuple(MEMBERS["bos"].tokenizer.encode("Hi"))
    assert read("bos", tokens=ids) == "Hi"
    assert read("bos", Prompt(last_tokens=1), tokens=ids) == "i"


def test_truncation_keeps_the_end_of_the_requests_prompt_only() -> None:
    assert read("plain", text="x" * 300 + "end", truncate=3) == "end"
    assert len(read("plain", text="x" * 300, truncate=-1)) == 255
    assert read("plain", Prompt(text="Other"), text="Hi", truncate=1) == "Other"


def test_template_variables() -> None:
    hf: Any = byte_tokenizer().hf
    hf.chat_template = "{{ mood }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    member = fake_member("moody", Tokenizer(hf), "chat")
    plan = Plan((Stream("base", "moody"),))
    ids = contexts(plan, RequestPrompt(messages=MESSAGES, variables={"mood": "calm"}), {"moody": member}, Encodings())[
        0
    ]
    assert member.tokenizer.decode(ids) == "calm:Be kindHi"


@pytest.mark.parametrize(
    ("model", "own", "request_", "said"),
    [
        ("endless", None, {"messages": (EMPTY,)}, "The prompt is empty, and the tokenizer of model 'endless'"),
        ("endless", None, {"text": ""}, "no token to begin a text with"),
        ("endless", None, {"tokens": ()}, "no token to begin a text with"),
        ("endless", Prompt(text=""), {"text": "Hi"}, "no token to begin a text with"),
        ("plain", None, {"text": "Hi", "truncate": 0}, "leaves nothing of the prompt"),
        ("plain", None, {"tokens": (1000,)}, "token id 1000 is not in the vocabulary (0 to 259)"),
        ("plain", Prompt(template="chat"), {"tokens": (1,)}, "'base' reads the prompt through its chat template"),
        ("bare", Prompt(template="chat"), {"text": "Hi"}, "'bare' has no chat template"),
        ("plain", None, {"text": "Hi", "variables": {"tokenize": True}}, "cannot set tokenize"),
    ],
)
def test_refusals(model: str, own: Prompt | None, request_: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError) as refusal:
        read(model, own, **request_)
    assert refusal.value.status_code == 400
    assert said in refusal.value.detail


def test_a_template_that_refuses_the_messages() -> None:
    hf: Any = byte_tokenizer().hf
    hf.chat_template = "{{ raise_exception('roles must alternate') }}"
    member = fake_member("strict", Tokenizer(hf), "chat")
    with pytest.raises(ApiError, match="roles must alternate") as refusal:
        contexts(Plan((Stream("base", "strict"),)), RequestPrompt(messages=MESSAGES), {"strict": member}, Encodings())
    assert refusal.value.code == "chat_template_error"


async def test_refusing_a_long_text_reads_no_more_than_two_contexts(world: World) -> None:
    """Texts far beyond a context are counted in pieces; one that may fit is read whole, and so is one to be cut."""
    member = world.service.registry.members["large"]
    member.tokenizer.__dict__["encode"] = encode = MagicMock(wraps=member.tokenizer.encode)
    for path, body in (
        ("/v1/completions", {"prompt": "x" * 5_000_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5_000_000}]}),
        ("/v1/score", {"prompt": "a", "continuations": ["x" * 5_000_000]}),
    ):
        encode.reset_mock()
        response = await world.post(path, model="large", **body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert sum(len(call.args[0]) for call in encode.call_args_list) < 2 * PIECE
    whole = await world.post("/v1/completions", model="large", prompt="x" * 100_000, truncate_prompt_tokens=4)
    assert whole.json()["usage"]["prompt_tokens"] == 4


async def test_a_text_is_tokenized_once(world: World) -> None:
    """A prompt before many continuations, a continuation that comes twice, two streams of one model."""
    member = world.service.registry.members["large"]
    member.tokenizer.__dict__["encode"] = encode = MagicMock(wraps=member.tokenizer.encode)
    scored = await world.post("/v1/score", model="large", prompt="abc", continuations=["de", "df", "de"])
    assert scored.status_code == 200
    texts = [call.args[0] for call in encode.call_args_list]
    assert sorted(text for text in texts if len(text) > 1) == ["abc", "abcde", "abcdf"]
    encode.reset_mock()
    negative = {"strategy": "guidance", "scale": 2.0, "negative_prompt": "abc"}
    assert (await world.post("/v1/completions", model="large", prompt="abc", composition=negative)).status_code == 200
    assert [call.args[0] for call in encode.call_args_list] == ["abc"]


@pytest.mark.parametrize("in_messages", [False, True])
def test_names_that_grow_a_prompt_without_end_are_counted_first(in_messages: bool) -> None:
    """All texts of a prompt together; nothing is built that only a refusal can follow."""
    long = "a " * 2500
    whole = RequestPrompt(text=long * 2)
    parts = RequestPrompt(messages=({"role": "user", "content": long}, {"role": "user", "content": long}))
    plan = Plan((Stream("base", "one", prompt=Prompt(swaps=(("a", "b" * 256),))),))
    members = {"one": fake_member("one", byte_tokenizer(), "chat")}
    with pytest.raises(ApiError, match="longer by 1,275,000 characters: at most 1,048,576") as refusal:
        contexts(plan, parts if in_messages else whole, members, Encodings())
    assert refusal.value.code == "context_length_exceeded"


SPACED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SQUARE = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }} {% endif %}"
    "{% endfor %}"
)
ASKING: Any = ({"role": "user", "content": "Who?"},)


@pytest.mark.parametrize(
    ("template", "kind", "prompt", "text", "read"),
    [
        (SPACED, "chat", RequestPrompt(messages=ASKING), "Ann", " Ann"),
        (SQUARE, "chat", RequestPrompt(messages=ASKING), "Ann", " Ann"),
        (SPACED, "chat", RequestPrompt(messages=ASKING), " Ann", " Ann"),
        (SPACED, "chat", RequestPrompt(messages=ASKING), "\nAnn", "\nAnn"),
        (CHAT_TEMPLATE, "chat", RequestPrompt(messages=ASKING), "Ann", "Ann"),
        (SPACED, "chat", RequestPrompt(messages=ASKING, add_generation_prompt=False), "Ann", "Ann"),
        (SPACED, "chat", RequestPrompt(messages=ASKING, continue_final_message=True), "Ann", "Ann"),
        (SPACED, "chat", RequestPrompt(text="Who?"), "Ann", "Ann"),
        (SPACED, "plain", RequestPrompt(messages=ASKING), "Ann", "Ann"),
    ],
)
def test_an_answer_gets_the_space_that_its_template_writes(
    template: str, kind: Template, prompt: RequestPrompt, text: str, read: str
) -> None:
    """A model has never seen an answer without it: its scores would be those of another text."""
    member = fake_member("one", byte_tokenizer(chat_template=template), kind)
    ids = continuation(text, Stream("base", "one"), member, prompt, Encodings())
    assert member.tokenizer.decode(list(ids)) == read


def test_a_text_that_may_fit_is_not_counted_before() -> None:
    member = fake_member("long", byte_tokenizer(), max_model_len=PIECE)
    member.tokenizer.__dict__["encode"] = encode = MagicMock(wraps=member.tokenizer.encode)
    encodings = Encodings()
    encodings.check_length("a" * 8 * PIECE, member, "prompt")
    assert not encode.called
    with pytest.raises(ApiError, match=f"is {PIECE} tokens"):
        encodings.check_length("a" * (8 * PIECE + 1), member, "prompt")
    assert encode.call_count == 3


async def test_tokenizing_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, which the refusal names; the first text is read in any case."""
    monkeypatch.setattr(encodings_module, "SECONDS", -1.0)
    refused = await world.post("/v1/score", model="large", prompt="abc", continuations=["d", "e"])
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "tokenizing_too_long")
    assert not world.engine.requests
    assert world.service.admission.taken == 0


async def test_nothing_is_tokenized_for_a_client_that_has_left() -> None:
    began, leave, texts = threading.Event(), threading.Event(), list[int]()

    def work(encodings: Encodings) -> None:
        for _ in range(100):
            texts.append(len(encodings.ids(str(len(texts)), MEMBERS["plain"])))
            began.set()
            leave.wait(10)

    working = asyncio.create_task(tokenized(work))
    await asyncio.to_thread(began.wait, 10)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    leave.set()
    async with asyncio.timeout(10):
        while TOKENIZING.borrowed_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(texts) == 1
