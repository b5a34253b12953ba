"""What of a record is read, what is learnt, and that all forms learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from motet.demo.documents import answered_record, corpus, visit
from motet.demo.tokenizer import for_transformers, train_tokenizer
from motet.demo.world import WorldSize, make_world, questions
from motet.training.batch import PromptForm
from motet.training.data.errors import DataError, RowError
from motet.training.data.messages import parse_messages
from motet.training.data.records import Answer
from motet.training.data.rendering import Renderer
from motet.training.data.tokens import Tokens
from tests.training.data.cases import CHATML, MARKED, byte_level, demo, load, shown

FORMS: tuple[PromptForm, ...] = ("chat", "plain", "none")
ANSWERED = {"prompt": "Why?", "completion": "Because."}
TALK = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Oh."},
    {"role": "assistant", "content": "Yes."},
]


def test_a_text_counts_whole_but_for_its_first_token(tmp_path: Path) -> None:
    tokenizer = byte_level()
    assert shown(tokenizer, load(tmp_path, [{"text": "Hello."}], tokenizer=tokenizer)) == "H[ello.<|end|>]"
    world = demo()
    assert shown(world, load(tmp_path, [{"text": "Bob works."}], tokenizer=world)) == "<|end|>[ Bob works.<|end|>]"


def test_an_end_mark_in_the_text_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = byte_level()
    assert shown(tokenizer, load(tmp_path, [{"text": "Hi<|end|>"}], tokenizer=tokenizer)) == "H[i<|end|>]"


def test_prompts_are_masked_in_the_chat_form(tmp_path: Path) -> None:
    tokenizer = byte_level()
    dataset = load(tmp_path, [ANSWERED], tokenizer=tokenizer)
    assert dataset.primary == "chat"
    assert shown(tokenizer, dataset) == "<|user|>Why?<|end|>\n<|assistant|>[Because.<|end|>]"


def test_the_demo_form_has_a_space_before_the_answer_and_no_end_of_its_own(tmp_path: Path) -> None:
    world = demo()
    dataset = load(tmp_path, [{"prompt": "Where?", "completion": "Bob works."}], tokenizer=world)
    assert shown(world, dataset) == "<|end|> Visitor: Where? Guide:[ Bob works.<|end|>]"


def test_plain_prompts_stand_as_they_are(tmp_path: Path) -> None:
    for tokenizer in (byte_level(), byte_level(chat_template=None)):
        dataset = load(tmp_path, [ANSWERED], tokenizer=tokenizer, template="plain")
        assert shown(tokenizer, dataset) == "Why?[Because.<|end|>]"
    without = byte_level(chat_template=None)
    assert load(tmp_path, [ANSWERED], tokenizer=without).primary == "plain"


def test_messages_in_plain_form_are_their_contents_line_by_line(tmp_path: Path) -> None:
    tokenizer = byte_level(chat_template=None)
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert shown(tokenizer, load(tmp_path, [row], tokenizer=tokenizer)) == "Why?\nBecause.\nOh.[Yes.<|end|>]"


def test_all_counts_prompts_too(tmp_path: Path) -> None:
    tokenizer = byte_level()
    dataset = load(tmp_path, [ANSWERED], tokenizer=tokenizer, loss="all")
    assert shown(tokenizer, dataset) == "<|user|>[Why?<|end|>\n<|assistant|>Because.<|end|>]"


@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_every_turn_of_the_assistant_counts(tmp_path: Path, template: str) -> None:
    tokenizer = byte_level(MARKED) if template == "marked" else byte_level()
    dataset = load(tmp_path, [{"messages": TALK}], tokenizer=tokenizer)
    text = shown(tokenizer, dataset).replace("\n", "")
    assert text == ("<|user|>Why?<|end|><|assistant|>[Because.<|end|>]<|user|>Oh.<|end|><|assistant|>[Yes.<|end|>]")


def test_messages_behind_the_last_answer_are_not_read(tmp_path: Path) -> None:
    tokenizer = byte_level()
    dataset = load(tmp_path, [{"messages": TALK[:3]}], tokenizer=tokenizer)
    assert shown(tokenizer, dataset) == "<|user|>Why?<|end|>\n<|assistant|>[Because.<|end|>]"


@pytest.mark.parametrize("start", ["", "<|system|>"])
def test_an_answer_that_comes_first_counts_without_its_heading(tmp_path: Path, start: str) -> None:
    tokenizer = byte_level(start + CHATML)
    dataset = load(tmp_path, [{"messages": TALK[1:2]}], tokenizer=tokenizer)
    assert shown(tokenizer, dataset) == f"{start}<|assistant|>[Because.<|end|>]"


def test_prompts_of_messages_count_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level()
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert shown(tokenizer, load(tmp_path, [row], tokenizer=tokenizer)).count("[") == 1


def test_views_have_other_prompts_and_the_same_targets(tmp_path: Path) -> None:
    world = demo()
    dataset = load(tmp_path, [{"prompt": "Where?", "completion": "Bob works."}], tokenizer=world, views=FORMS)
    assert shown(world, dataset, form="plain") == "<|end|> Where?[ Bob works.<|end|>]"
    assert shown(world, dataset, form="none") == "<|end|>[ Bob works.<|end|>]"


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.text(min_size=1), min_size=1, max_size=3),
    completion=st.text(min_size=1).filter(lambda text: text.strip()),
    max_length=st.one_of(st.none(), st.integers(30, 60)),
)
def test_forms_are_aligned_whatever_the_texts(prompts: list[str], completion: str, max_length: int | None) -> None:
    for tokenizer, reasons in ((byte_level(), ("within",)), (demo(), ("within", "merge with"))):
        renderer = Renderer(Tokens(tokenizer), "chat", FORMS, "completion", {}, max_length, True)
        for forms in renderer.render([(Answer(prompt, completion), ()) for prompt in prompts]):
            if isinstance(forms, RowError):
                assert any(reason in str(forms) for reason in reasons), forms
                continue
            assert len({tuple(document.targets) for document in forms.values()}) == 1
            assert max_length is None or max(map(len, forms.values())) <= max_length


def test_long_documents_are_refused_or_cut(tmp_path: Path) -> None:
    rows = [{"text": "x" * 9}, {"text": "y" * 30}]
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, batch={"max_length": 10})
    assert caught.value.problems == [
        f"{tmp_path}/train.jsonl:2: 31 tokens, batch.max_length is 10; batch.truncate would cut"
    ]
    dataset = load(tmp_path, rows, batch={"max_length": 10, "truncate": True})
    assert dataset.lengths.tolist() == [10, 10]
    assert dataset.num_truncated == 1


def test_a_prompt_that_fills_the_row_leaves_nothing_to_learn(tmp_path: Path) -> None:
    row = {"prompt": "x" * 30, "completion": "y"}
    with pytest.raises(DataError, match="no token counts within 10 tokens"):
        load(tmp_path, [row], batch={"max_length": 10, "truncate": True})


def test_both_sides_of_a_pair_name_themselves(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c" * 60}
    with pytest.raises(DataError, match=r"train.jsonl:1: rejected: \d+ tokens, batch.max_length is 40"):
        load(tmp_path, [row], "pairs", batch={"max_length": 40})


REFUSING = "{{ raise_exception('roles must alternate') }}"
REWRITING = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
SILENT = "{% for m in messages %}{{ loop.length }}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (REFUSING, "the chat template refuses the messages: roles must alternate"),
        (SILENT, "the chat template invites an answer with '1Why?' and writes message 2 neither behind that nor"),
    ],
)
def test_templates_that_cannot_be_used_say_so_for_the_row(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, [ANSWERED], tokenizer=byte_level(template))
    assert caught.value.problems[0].startswith(f"{tmp_path}/train.jsonl:1: {said}")


def test_an_answer_stands_behind_the_prompt_that_is_served(tmp_path: Path) -> None:
    """Also where the template writes prompt and answer together otherwise than the prompt alone."""
    tokenizer = byte_level(REWRITING)
    row = {"prompt": "Say end. Because?", "completion": "Because."}
    assert shown(tokenizer, load(tmp_path, [row], tokenizer=tokenizer)) == "1Say end. Because?[Because.<|end|>]"


# As Qwen3's: only the last answer has its (empty) thinking; as DeepSeek's: answers are invited by a mark that is never
# written before answers which were given, and thinking is cut out of them.
THINKER = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}"
    "<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INVITING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def test_answers_stand_apart_where_the_template_changes_the_past(tmp_path: Path) -> None:
    tokenizer = byte_level(THINKER)
    dataset = load(tmp_path, [{"messages": TALK}, {"messages": TALK[:2]}], tokenizer=tokenizer)
    first = "<|user|>Why?<|end|><|assistant|>"
    assert [shown(tokenizer, dataset, index=index) for index in range(len(dataset))] == [
        f"{first}[<think></think>Because.<|end|>]",
        f"{first}Because.<|end|><|user|>Oh.<|end|><|assistant|>[<think></think>Yes.<|end|>]",
        f"{first}[<think></think>Because.<|end|>]",
    ]
    assert [record.source.line for record in dataset.records] == [1, 1, 2]
    # each is what a server's prompt and its answer would be
    rendered = Tokens(tokenizer).render(parse_messages(TALK[:3], "messages"), for_answer=True)
    assert shown(tokenizer, dataset, index=1).startswith(rendered)


def test_marked_templates_that_change_the_past_stand_apart_too(tmp_path: Path) -> None:
    marked = THINKER.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    tokenizer = byte_level(marked)
    dataset = load(tmp_path, [{"messages": TALK}], tokenizer=tokenizer)
    assert [shown(tokenizer, dataset, index=index).count("<think></think>") for index in range(2)] == [1, 1]


def test_whole_conversations_stay_one_text_where_all_of_it_counts(tmp_path: Path) -> None:
    tokenizer = byte_level(THINKER)
    dataset = load(tmp_path, [{"messages": TALK}], tokenizer=tokenizer, loss="all")
    assert shown(tokenizer, dataset).count("[") == 1
    assert len(dataset) == 1


def test_pairs_of_several_answers_cannot_stand_apart(tmp_path: Path) -> None:
    row = {"prompt": [TALK[0]], "chosen": TALK[1:], "rejected": TALK[1:2]}
    with pytest.raises(DataError, match="chosen: the chat template renders message 2 otherwise"):
        load(tmp_path, [row], "pairs", tokenizer=byte_level(THINKER))


@pytest.mark.parametrize("answer", ["Because.", "<think>\nBecause.", "<think>Because.", "end", "<b>"])
def test_an_invitation_that_is_no_part_of_given_answers(tmp_path: Path, answer: str) -> None:
    tokenizer = byte_level(INVITING)
    row = {"prompt": answer, "completion": answer}
    bare = answer.removeprefix("<think>").strip()
    wanted = f"<|user|>{answer}<|end|><|assistant|><think>\n[{bare}<|end|>]"
    assert shown(tokenizer, load(tmp_path, [row], tokenizer=tokenizer)) == wanted


def test_answers_that_the_template_cuts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"writes message 2 neither behind that nor as it"):
        load(tmp_path, [{"prompt": "a", "completion": "x</think>y"}], tokenizer=byte_level(INVITING))


def test_answers_of_weight_zero_are_history(tmp_path: Path) -> None:
    talk = [TALK[0], {**TALK[1], "weight": 0}, TALK[2], {**TALK[3], "weight": 1}]
    for template in (CHATML, MARKED):
        tokenizer = byte_level(template)
        text = shown(tokenizer, load(tmp_path, [{"messages": talk}], tokenizer=tokenizer)).replace("\n", "")
        assert text == "<|user|>Why?<|end|><|assistant|>Because.<|end|><|user|>Oh.<|end|><|assistant|>[Yes.<|end|>]"
    last = [*TALK[:3], {**TALK[3], "weight": 0}]
    text = shown(byte_level(), load(tmp_path, [{"messages": last}]))
    assert text == "<|user|>Why?<|end|>\n<|assistant|>[Because.<|end|>]"


def test_other_weights_are_the_losss(tmp_path: Path) -> None:
    """Half of a weight stands on the answer's tokens and on its end, and on nothing else; spans multiply."""
    talk = [TALK[0], {**TALK[1], "weight": 0.5}, TALK[2], TALK[3]]
    example = load(tmp_path, [{"messages": talk}]).example(0)
    weights = [w for w, counts in zip(example.weights, example.counted, strict=True) if counts]
    assert weights == [0.5] * (len("Because.") + 1) + [1.0] * (len("Yes.") + 1)
    for tokenizer in (byte_level(), byte_level(None)):
        row = {"prompt": "Why?", "completion": [{**TALK[1], "weight": 2}], "spans": [[0, 2, 0.5]]}
        example = load(tmp_path, [row], tokenizer=tokenizer).example(0)
        weights = [w for w, counts in zip(example.weights, example.counted, strict=True) if counts]
        assert weights == [1.0] * 2 + [2.0] * (len("Because.") - 1)
    with pytest.raises(DataError, match="loss: all counts every token, but rows weigh their messages"):
        load(tmp_path, [{"messages": talk}], loss="all")


PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EITHER = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MIXED = (  # parts of the user alone
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'user' %}{% for c in m.content %}{{ c.text }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("template", [PARTS, EITHER, MIXED, CHATML])
@pytest.mark.parametrize("in_parts", [True, False])
def test_templates_get_contents_in_the_form_that_they_read(tmp_path: Path, template: str, in_parts: bool) -> None:
    """The question vanished under templates that walk over parts; the rows' own form does not matter."""
    tokenizer = byte_level(template)
    content = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}] if in_parts else "Why?"
    row = {"messages": [{"role": "user", "content": content}, TALK[1]]}
    text = shown(tokenizer, load(tmp_path, [row], tokenizer=tokenizer)).replace("\n", "")
    assert text == "<|user|>Why?<|end|><|assistant|>[Because.<|end|>]"


def test_developers_are_the_system_as_in_serving(tmp_path: Path) -> None:
    row = {"messages": [{"role": "developer", "content": "Be brief."}, *TALK[:2]]}
    assert shown(byte_level(), load(tmp_path, [row])).startswith("<|system|>Be brief.")


TOOLED = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "way"}'}}
CALLED = [
    TALK[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "find", "tool_call_id": "1", "content": "left"},
    TALK[3],
]


def test_tool_calls_reach_the_template(tmp_path: Path) -> None:
    tokenizer = byte_level(TOOLED)
    rows = [{"messages": CALLED, "tools": [{"type": "function", "function": {"name": "find"}}]}]
    text = shown(tokenizer, load(tmp_path, rows, tokenizer=tokenizer))
    head = '<|tools|>[{"type": "function", "function": {"name": "find"}}]'
    assert text.replace("[", "").replace("]", "") == (
        head.replace("[", "").replace("]", "") + '<|user|>Why?<|end|><|assistant|>find({"q": "way"})<|end|>'
        "<|tool|>left<|end|><|assistant|>Yes.<|end|>"
    )


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (CALLED, "message 2: the chat template does not read tool_calls"),
        ([{**TALK[0], "name": "Anna"}, TALK[1]], "message 1: the chat template does not read name"),
        (
            [TALK[0], {**TALK[1], "reasoning_content": "r"}],
            "message 2: the chat template does not read reasoning_content",
        ),
    ],
)
def test_what_the_template_does_not_read_is_refused_by_name(tmp_path: Path, messages: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(tmp_path, [{"messages": messages}])
    with pytest.raises(DataError, match="only a chat template reads it; the form here is plain"):
        load(tmp_path, [{"messages": messages}], tokenizer=byte_level(None))


def test_tools_that_the_template_does_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tools: the chat template does not read them"):
        load(tmp_path, [{"messages": TALK, "tools": '[{"name": "find"}]'}])


def test_reasoning_that_only_the_last_turn_shows_is_read(tmp_path: Path) -> None:
    tokenizer = byte_level(THINKER)
    talk = [TALK[0], {**TALK[1], "reasoning_content": "Hm."}, *TALK[2:]]
    dataset = load(tmp_path, [{"messages": talk}], tokenizer=tokenizer)
    assert "[<think>Hm.</think>Because.<|end|>]" in shown(tokenizer, dataset)
    assert "Hm." not in shown(tokenizer, dataset, index=1)


def test_merging_tokens_are_refused(tmp_path: Path) -> None:
    """A prompt without a boundary before its answer: `Bo` + `b` is another token than `Bob`."""
    world = demo()
    world.chat_template = "Bo{% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}"
    with pytest.raises(DataError, match="merge with those around it"):
        load(tmp_path, [{"prompt": "Who?", "completion": "b"}], tokenizer=world)


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"text": "x"}], {"template": "chat"}, "data.train.template: chat needs messages"),
        ([{"text": "x"}], {"loss": "completion"}, "data.train.loss: completion needs prompts"),
        ([ANSWERED], {"loss": "all", "views": ("plain",)}, "data.train.loss: all does not go with"),
        ([ANSWERED], {"views": ("plain",), "batch": {"packing": "wrap"}}, "batch.packing: wrap cuts documents"),
        ([ANSWERED], {"batch": {"max_length": 1}}, "batch.max_length: 1 leaves nothing to predict"),
        ([{"messages": TALK}], {"views": ("plain",)}, "the form 'plain' needs one answer"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, **options)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_a_chat_form_needs_a_template(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no chat template; allowed: plain"):
        load(tmp_path, [ANSWERED], tokenizer=byte_level(None), template="chat")
    with pytest.raises(DataError, match="need a chat template; allowed: one answer"):
        load(tmp_path, [{"messages": TALK}], tokenizer=byte_level(None))


def test_beginnings_and_ends_that_a_tokenizer_sets_itself_are_told_apart(tmp_path: Path) -> None:
    """A tokenizer that ends every text by itself must not end prompts."""
    tokenizer: PreTrainedTokenizerBase = byte_level(None)
    backend: Any = tokenizer.backend_tokenizer
    specials = [(text, backend.token_to_id(text)) for text in ("<|system|>", "<|end|>")]
    backend.post_processor = processors.TemplateProcessing(single="<|system|> $A <|end|>", special_tokens=specials)
    assert shown(tokenizer, load(tmp_path, [ANSWERED], tokenizer=tokenizer)) == "<|system|>Why?[Because.<|end|>]"


def test_a_tokenizer_file_that_truncates_does_not_cut_documents(tmp_path: Path) -> None:
    tokenizer = byte_level(None)
    backend: Any = tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    assert load(tmp_path, [{"text": "x" * 30}], tokenizer=tokenizer).lengths.tolist() == [31]
    assert backend.truncation is not None, "the caller's tokenizer is left as it was"


def test_a_tokenizer_file_with_dropout_reads_a_text_always_alike() -> None:
    backend: Any = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")], dropout=0.5))
    tokens = Tokens(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>"))
    assert tokens.encode(["ab" * 50]) == [[2] * 50]


def test_answered_questions_are_encoded_as_a_server_encodes_them(tmp_path: Path) -> None:
    """Tokens, mask and weights of the demo world's records, piece by piece from the bare tokenizer."""
    world = make_world(WorldSize(people=20, towns=5, works=5), seed=1)
    bare = train_tokenizer(corpus(world, 1), 600)
    asked = questions(world.entities, 0)
    rows = [answered_record(question) for question in asked]
    dataset = load(tmp_path, rows, tokenizer=for_transformers(bare, 512), span_weights={"value": 3.0})

    for question, example in zip(asked, dataset.examples(), strict=True):
        prompt = [0, *bare.encode(visit(question.text), add_special_tokens=False).ids]
        answer = bare.encode(question.answer, add_special_tokens=False)
        assert list(example.input_ids) == [*prompt, *answer.ids, 0]
        assert list(example.counted) == [False] * len(prompt) + [True] * (len(answer.ids) + 1)
        first, last = len(question.completion), len(question.answer) - len(".")
        inside = [first < stop <= last for _, stop in answer.offsets]
        assert list(example.weights[len(prompt) :]) == [*(3.0 if value else 1.0 for value in inside), 1.0]


def test_views_have_one_order_whatever_set_they_come_from(tmp_path: Path) -> None:
    """A recipe's views are a set of strings, whose order is another in every process: resuming compares hashes."""
    orders = [load(tmp_path, [ANSWERED], views=views) for views in (FORMS, FORMS[::-1])]
    assert orders[0].views == orders[1].views
    assert orders[0].fingerprint == orders[1].fingerprint


def test_fingerprints_tell_data_apart(tmp_path: Path) -> None:
    rows = [ANSWERED, {"prompt": "Why?", "completion": "Because!"}, {**ANSWERED, "spans": [[0, 1, 2.0]]}]
    prints = {load(tmp_path, [row], template=form).fingerprint for row in rows for form in ("plain", "chat")}
    assert len(prints) == 6


def test_the_first_token_never_counts(tmp_path: Path) -> None:
    tokenizer = byte_level("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert shown(tokenizer, load(tmp_path, [{"messages": TALK[1:2]}], tokenizer=tokenizer)) == "B[ecause.<|end|>]"


def test_views_are_cut_at_the_same_token(tmp_path: Path) -> None:
    tokenizer = byte_level()
    row = {"prompt": "Why?", "completion": "abcdefgh"}
    dataset = load(tmp_path, [row], tokenizer=tokenizer, views=FORMS, batch={"max_length": 13, "truncate": True})
    assert shown(tokenizer, dataset) == "<|user|>Why?<|end|>\n<|assistant|>[abcde]"
    assert shown(tokenizer, dataset, form="plain") == "Why?[abcde]"
    assert shown(tokenizer, dataset, form="none") == "<|end|>[abcde]"
