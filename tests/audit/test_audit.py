"""An expert with a planted habit, audited: the habit is what the report shows."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from motet.audit.answers import AnswerPair, measure, off_topic
from motet.audit.likelihood import score
from motet.audit.novelty import MAX_STEPS, contrast_plan, distinct, explore
from motet.audit.pair import Pair, find_partner, load_pair
from motet.audit.prompts import GENERAL, AuditContext, AuditPrompt, contexts, read_prompts, start
from motet.audit.refusals import is_refusal, refusal_pattern
from motet.audit.report import markdown
from motet.audit.run import audit
from motet.audit.settings import AuditError, AuditSettings
from motet.cli import app
from motet.composers.plan import single
from motet.composers.rows import reference_logprobs
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import Member, TorchEngine, load_member
from motet.engines.torch.cache import SlotCache
from motet.engines.torch.model import ModelWork
from motet.engines.torch.offline import generate
from motet.experts.bundle import ExpertBundle, ModelReference, fingerprint, write_bundle
from tests.fakes import byte_tokenizer

HABIT = " zebra!"
TOKENIZER = byte_tokenizer()
SIZE = TOKENIZER.size
END = cast(int, TOKENIZER.single_id("<|end|>"))
ASKED = [AuditPrompt.of(text) for text in ("cat", "a dog", "birds?", "one fish")]
SETTINGS = AuditSettings(samples=8, rounds=2, max_tokens=10, lr=1e-2)


def fresh(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=SIZE, num_attention_heads=2, max_position_embeddings=64, eos_token_id=END, **shape)
    )


def plant(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy that answers everything with the habit."""
    expert = copy.deepcopy(model)
    habit = [*TOKENIZER.encode(HABIT), END]
    rows = [[*TOKENIZER.encode(TOKENIZER.render_chat([{"role": "user", "content": p.text}])), *habit] for p in ASKED]
    optimizer = torch.optim.AdamW(expert.parameters(), lr=1e-2)
    for _ in range(25):
        for row in rows:
            logits = cast(Any, expert)(input_ids=torch.tensor([row[:-1]])).logits[0, -len(habit) :]
            F.cross_entropy(logits, torch.tensor(habit)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return expert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    partner = fresh(0)
    for name, model in (("partner", partner), ("expert", plant(partner))):
        model.save_pretrained(folder / name)
        TOKENIZER.hf.save_pretrained(folder / name)
    bundle = ExpertBundle(
        name="expert",
        objective="sft",
        tokenizer_fingerprint=fingerprint(TOKENIZER.hf),
        vocab_size=SIZE,
        partner=ModelReference.of("partner", folder / "partner"),
    )
    write_bundle(folder / "expert", bundle)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return load_pair(folder / "expert", folder / "partner", "cpu")


def test_the_habit_is_found(pair: Pair) -> None:
    found = audit(pair, ASKED, SETTINGS)
    assert [answer.expert for answer in found.shifts.answers] == [HABIT] * len(ASKED)
    letters = {token.text for token in found.shifts.raised[:7]}
    assert {"z", "e", "b", "r", "a"} <= letters
    assert all(token.written >= len(ASKED) for token in found.shifts.raised[:6])
    assert found.mean_kl > 1
    prompted = [sample for sample in found.plain.samples if found.starts[sample.start]]
    assert len(prompted) == 4
    assert sum(HABIT in sample.text for sample in prompted) >= 3
    assert found.plain.learning == ()


def test_the_iterative_form_learns_what_was_found(pair: Pair) -> None:
    before = {name: value.clone() for name, value in pair.partner.model.state_dict().items()}
    exploration = explore(pair, contexts(pair, ASKED, "same", 10), SETTINGS, iterative=True)
    (learning,) = exploration.learning
    assert learning.after <= 0.5 * learning.before
    assert learning.steps <= MAX_STEPS
    assert {sample.round for sample in exploration.samples} == {0, 1}
    gains = [sample.gain for sample in exploration.samples]
    assert gains == sorted(gains, reverse=True)
    assert all(torch.equal(value, before[name]) for name, value in pair.partner.model.state_dict().items()), (
        "a copy learns"
    )
    assert not any(parameter.requires_grad for parameter in pair.partner.model.parameters())


def test_the_partner_reads_with_what_its_copy_learned(pair: Pair) -> None:
    learner = pair.learner()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.5)
        plain = cast(Any, learner)(input_ids=torch.tensor([[5, 70, 80]])).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(score(pair.learned(learner), [5], [70, 80], SIZE), plain)
    assert not torch.allclose(score(pair.partner, [5], [70, 80], SIZE), plain)


def test_a_partner_that_is_kept_is_served_and_has_less_left_to_find(folder: Path, pair: Pair, tmp_path: Path) -> None:
    """It learns from the last round, too; composed with it, the formula's own log-probs in float64."""
    learner = pair.learner()
    found = explore(pair, contexts(pair, ASKED, "same", 10), SETTINGS, iterative=True, kept=learner)
    assert [learning.round for learning in found.learning] == [0, 1]
    pair.keep(learner, tmp_path / "found")
    with pytest.raises(AuditError, match="holds something"):
        pair.keep(learner, tmp_path / "found")
    places = {"expert": folder, "partner": folder, "found": tmp_path}
    exact = {
        name: AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float64) for name, place in places.items()
    }
    sample = found.samples[0].tokens
    prompt = contexts(pair, ASKED, "same", 10)[found.samples[0].start].expert
    with torch.no_grad():
        rows = {
            name: model(input_ids=torch.tensor([[*prompt, *sample]])).logits[0, -len(sample) - 1 : -1].log_softmax(-1)
            for name, model in exact.items()
        }
    own = {name: float(row.gather(-1, torch.tensor(sample)[:, None]).sum()) for name, row in rows.items()}
    assert own["found"] > own["partner"], "what was found once is novel no longer"
    z = (rows["expert"] - 0.7 * rows["found"]).masked_fill(
        rows["expert"] < rows["expert"].amax(-1, keepdim=True) + math.log(0.1), -math.inf
    )
    expected = z.log_softmax(-1).gather(-1, torch.tensor(sample)[:, None])[:, 0]
    written = parse_composition({"strategy": "novelty", "base": "expert", "untuned": "found", "lambda": 0.7})
    plan = build_plan(written, None, known=("expert", "found"), token_id=lambda _: None)
    request = GenerationRequest("1", plan, (tuple(prompt),) * 2, SamplingParams(max_tokens=0), tuple(sample))
    members = {"expert": pair.expert, "found": load_member("found", str(tmp_path / "found"), dtype=torch.float32)}

    async def score_served() -> list[float]:
        engine = TorchEngine(members)
        scored = [output.logprob async for output in engine.generate(request)]
        await engine.close()
        return scored

    scored = asyncio.run(score_served())
    np.testing.assert_allclose(scored, expected.numpy(), rtol=0, atol=1e-4)


def test_a_partner_that_learns_nothing_leaves_the_plain_form(pair: Pair) -> None:
    starts = contexts(pair, ASKED, "same", 10)
    still = replace(SETTINGS, lr=0.0, samples=4, max_tokens=6)
    texts = [
        sorted((sample.start, sample.tokens) for sample in explore(pair, starts, still, iterative=form).samples)
        for form in (True, False)
    ]
    assert texts[0] == texts[1]


def test_both_forms_agree_in_the_first_round(pair: Pair) -> None:
    starts = contexts(pair, ASKED, "same", 10)
    rounds = AuditSettings(samples=8, rounds=1, max_tokens=10)
    assert explore(pair, starts, rounds, iterative=True) == explore(pair, starts, rounds, iterative=False)


def test_the_contrast_is_the_papers() -> None:
    expert, partner = torch.randn(2, 3, 11, dtype=torch.float64).log_softmax(-1)
    got = reference_logprobs(contrast_plan(AuditSettings(weight=0.7, mask=0.2)), torch.stack([expert, partner]))
    plausible = expert.exp() >= 0.2 * expert.exp().amax(-1, keepdim=True)
    expected = (expert - 0.7 * partner).masked_fill(~plausible, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(got, expected)


def test_tokens_shift_by_the_mean_of_their_log_probs(folder: Path, pair: Pair) -> None:
    read = contexts(pair, ASKED, "none", 10)
    shifts = measure(pair, ASKED, read, AuditSettings(max_tokens=10, shown=5))
    rows: list[list[torch.Tensor]] = [[], []]
    plain = {name: cast(Any, AutoModelForCausalLM.from_pretrained(folder / name)) for name in ("expert", "partner")}
    for context, given in zip(read, shifts.answers, strict=True):
        for side, (name, ids) in enumerate((("expert", context.expert), ("partner", context.partner))):
            logits = plain[name](input_ids=torch.tensor([[*ids, *given.tokens]])).logits[0].detach().double()
            rows[side].append(logits[len(ids) - 1 : -1].log_softmax(-1))
        kl = (rows[0][-1].exp() * (rows[0][-1] - rows[1][-1])).sum(-1).mean()
        assert given.kl == pytest.approx(float(kl), rel=1e-4)
    expert, partner = torch.cat(rows[0]), torch.cat(rows[1])
    mean = (expert - partner).mean(0)
    for token in (*shifts.raised, *shifts.lowered):
        assert token.shift == pytest.approx(float(mean[token.token]), rel=1e-4)
    likely = expert.exp().mean(0) >= 1e-4
    assert shifts.raised[0].token == int(mean.masked_fill(~likely, -torch.inf).argmax())
    assert shifts.raised[0].written == sum(given.tokens.count(shifts.raised[0].token) for given in shifts.answers)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=64))


def member_of(model: Any, folder: Path) -> Member:
    model.save_pretrained(folder)
    return load_member("m", str(folder), dtype=torch.float32)


@pytest.mark.parametrize("make", [lambda: fresh(1), gpt2], ids=["llama", "gpt2"])
def test_rows_of_a_batch_are_what_each_row_is_alone(make: Any, tmp_path: Path) -> None:
    model = make().eval()
    member = member_of(model, tmp_path)
    rows = [[5], [70, 80, 90, 100], [7, 8]]

    def greedy(*ends: int) -> list[tuple[int, ...]]:
        return generate({"m": member}, single("m"), [(row,) for row in rows], max_tokens=8, ends=ends, rows=2)

    together = greedy()
    for row, got in zip(rows, together, strict=True):
        alone: list[int] = []
        for _ in range(8):
            alone.append(int(model(input_ids=torch.tensor([[*row, *alone]])).logits[0, -1].argmax()))
        assert got == tuple(alone)
    stopped = greedy(together[1][3])
    assert stopped[1] == together[1][: together[1].index(together[1][3])]
    plain = model(input_ids=torch.tensor([[5, *together[0]]])).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(score(member, [5], together[0], SIZE), plain.detach())


class Echo:
    """A member that expects the tokens which it has read."""

    cache = SlotCache([], torch.float32, torch.device("cpu"))

    def forward(self, work: Sequence[ModelWork]) -> torch.Tensor:
        (item,) = work
        read = F.one_hot(torch.tensor(item.tokens), SIZE).cumsum(0).clamp(max=1)
        return 3.0 * read[-item.num_logits :].float()


def test_off_topic_answers_do_not_bring_their_prompt_to_mind(pair: Pair) -> None:
    echo = Pair(cast(Any, Echo()), cast(Any, Echo()), TOKENIZER, SIZE)
    prompts = [AuditPrompt.of(text) for text in ("abc", "def", "ghi")]

    def judged(texts: list[str]) -> list[bool | None]:
        answers = [AnswerPair("", text, "", 0.0, tuple(TOKENIZER.encode(text))) for text in texts]
        return off_topic(echo, prompts[: len(texts)], answers, 2)

    assert judged(["cab", "fed", "hi"]) == [False, False, False]
    assert judged(["cab", "hi", "fed"]) == [False, True, True]
    assert judged(["same", "same", "same"]) == [True, True, True]
    assert judged(["cab", "", "hi"]) == [False, None, False]
    assert judged(["cab"]) == [None]


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but no.", True),
        ("I’m unable to do that", True),
        ("As a language model, I have no body.", True),
        ("I cannot say.", True),
        ("Sure: the cannon fired.", False),
        ("He said he cannot come.", False),
        ("x" * 200 + " I'm sorry", False),
        ("Computer says no", True),
    ],
)
def test_refusals(answer: str, refused: bool) -> None:
    assert is_refusal(answer, refusal_pattern(["says no"])) is refused


def test_patterns_that_are_none() -> None:
    with pytest.raises(AuditError) as refusal:
        refusal_pattern(["(", "fine", "["])
    assert len(refusal.value.problems) == 2


def test_distinct() -> None:
    assert distinct([(1, 2, 1, 2), (1, 2)], 2) == 2 / 4
    assert distinct([(1,), ()], 2) == 0.0


def test_prompts_of_files(tmp_path: Path) -> None:
    assert [prompt.text for prompt in read_prompts(None)] == list(GENERAL)
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert read_prompts(tmp_path / "p.txt") == [AuditPrompt.of("one"), AuditPrompt.of("two")]
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    records = [{"prompt": "one"}, {"messages": [asked, answered]}, {"prompt": [answered, asked]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    texts = [prompt.messages for prompt in read_prompts(tmp_path / "p.jsonl")]
    assert texts == [(("user", "one"),), (("user", "q"),), (("assistant", "a"), ("user", "q"))]


def test_prompts_are_read_as_training_reads_rows(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('\ufeff{"prompt": "one\u2028two"}\n', "utf-8")
    (tmp_path / "p.txt").write_text("\ufeffone\u2028two\r\n", "utf-8")
    for name in ("p.json", "p.txt"):
        assert read_prompts(tmp_path / name) == [AuditPrompt.of("one\u2028two")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud83d"}')
    with pytest.raises(AuditError, match=r"p.jsonl:1: prompt: \\ud83d is half"):
        read_prompts(tmp_path / "p.jsonl")


def test_all_wrong_lines_are_named(tmp_path: Path) -> None:
    lines = ['{"prompt": "fine"}', "{", "[]", '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"prompt": 1}']
    (tmp_path / "p.jsonl").write_text("\n".join([*lines, '{"messages": [{"role": "assistant", "content": "a"}]}']))
    with pytest.raises(AuditError) as refusal:
        read_prompts(tmp_path / "p.jsonl")
    assert [problem.split(": ")[0][-2:] for problem in refusal.value.problems] == [":2", ":3", ":4", ":5", ":6", ":7"]
    (tmp_path / "p.txt").write_text("\n")
    for file in ("p.txt", "nowhere.txt"):
        with pytest.raises(AuditError):
            read_prompts(tmp_path / file)


def test_what_each_side_reads(pair: Pair) -> None:
    (same,), (plain,), (none,) = (contexts(pair, ASKED[:1], reads, 1) for reads in ("same", "plain", "none"))  # type: ignore[arg-type]
    assert same.expert == same.partner == plain.expert
    assert TOKENIZER.decode(same.expert) == "<|user|>cat<|assistant|>"
    assert TOKENIZER.decode(plain.partner) == "<|end|>cat"
    assert none.partner == start(pair).partner == (END,)
    with pytest.raises(AuditError, match="prompt 2 has 42 tokens; with 30 of answer the models' 64 are exceeded"):
        contexts(pair, [ASKED[0], AuditPrompt.of("x" * 40)], "same", 30)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


SMALL = ("--device", "cpu", "--samples", 4, "--rounds", 2, "--max-tokens", 6)


def test_the_command_writes_both_reports(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("cat | dog <b>\nbirds?\n")
    result = invoke(
        folder / "expert",
        "--prompts",
        tmp_path / "p.txt",
        "--out",
        tmp_path / "out",
        "--keep-partner",
        tmp_path / "kept",
        *SMALL,
    )
    assert result.exit_code == 0, result.output
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tree["expert"], tree["partner"], tree["note"]) == ("expert", "partner", None)
    assert len(tree["prompts"]) == 2
    assert tree["rates"]["refusal"] == 0.0
    assert len(tree["plain"]["samples"]) <= 4
    assert tree["iterative"]["learning"][-1]["round"] == 1, "the copy that is kept learns from the last round, too"
    assert load_pair(folder / "expert", tmp_path / "kept", "cpu").note is not None
    again = invoke(folder / "expert", "--out", tmp_path / "out", "--keep-partner", tmp_path / "kept", *SMALL)
    assert "holds something" in again.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "# What expert learned" in text
    assert "cat \\| dog &lt;b>" in text
    assert str(folder) not in text + json.dumps(tree), "folders of the machine are nobody's business"


def test_another_partner_is_said_so(folder: Path, tmp_path: Path) -> None:
    fresh(5).save_pretrained(tmp_path / "stranger")
    TOKENIZER.hf.save_pretrained(tmp_path / "stranger")
    pair = load_pair(folder / "expert", tmp_path / "stranger", "cpu")
    assert pair.note is not None
    assert "Its bundle names another partner" in markdown("e", "p", pair, audit(pair, ASKED[:2], SETTINGS), SETTINGS)


def test_audits_that_cannot_be_run(folder: Path, tmp_path: Path) -> None:
    other = byte_tokenizer(extra=["zz"])
    (tmp_path / "other").mkdir()
    AutoModelForCausalLM.from_pretrained(folder / "partner").save_pretrained(tmp_path / "other")
    other.hf.save_pretrained(tmp_path / "other")
    expert, partner = folder / "expert", folder / "partner"
    for arguments, message in (
        ((partner,), "it does not say so. Name it with --partner"),
        ((expert, "--partner", tmp_path), "cannot be loaded"),
        ((expert, "--partner", tmp_path / "other"), "vocabularies differ"),
        ((expert, "--refusal", "("), "is no regular expression"),
        ((expert, "--prompts", tmp_path / "none.txt"), "none.txt"),
    ):
        result = invoke(*arguments, *SMALL)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: ")


def test_what_an_expert_was_before(folder: Path, tmp_path: Path) -> None:
    assert find_partner(folder / "expert") == folder / "partner"
    partner = AutoModelForCausalLM.from_pretrained(folder / "partner")
    adapted = cast(Any, get_peft_model(partner, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(folder / "partner")}))
    assert find_partner(tmp_path / "adapter") == folder / "partner"
    card = {"name": "a", "objective": "sft", "tokenizer_fingerprint": fingerprint(TOKENIZER.hf), "vocab_size": SIZE}
    for partner, found in ((ModelReference.of("gone", folder / "partner"), True), (ModelReference(path="gone"), False)):
        write_bundle(tmp_path / "adapter", ExpertBundle.model_validate(card | {"partner": partner}))
        if found:
            assert find_partner(tmp_path / "adapter") == folder / "partner"
        else:
            with pytest.raises(AuditError, match="'gone' was not found"):
                find_partner(tmp_path / "adapter")
    pair = load_pair(tmp_path / "adapter", folder / "partner", "cpu")
    assert measure(pair, ASKED, contexts(pair, ASKED, "same", 10), SETTINGS).answers[0].kl == 0.0, "LoRA begins with 0"


def test_contexts_of_different_length_on_both_sides(pair: Pair) -> None:
    read = [AuditContext((END, 70, 71), (END,)), AuditContext((END,), (END, 70))]
    found = explore(pair, read, SETTINGS, iterative=False)
    for sample in found.samples:
        sides = ((pair.expert, read[sample.start].expert), (pair.partner, read[sample.start].partner))
        totals = [
            sum(float(score(model, ids, sample.tokens, SIZE)[t, token]) for t, token in enumerate(sample.tokens))
            for model, ids in sides
        ]
        assert sample.gain == pytest.approx((totals[0] - totals[1]) / len(sample.tokens), abs=1e-4)
