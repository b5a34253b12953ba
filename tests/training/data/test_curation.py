"""Curation: criteria against hand-computed values, with a policy that is a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from motet.engines.torch import load_member
from motet.training.batch import Batch
from motet.training.data.curation.confidence import confidences, preferences
from motet.training.data.curation.correction import engine_answer
from motet.training.data.curation.curate import Thresholds, by_confidence, by_information, drop_duplicates, merged
from motet.training.data.curation.duplicates import find_duplicates, jaccard, shingles, words
from motet.training.data.curation.rows import with_answer
from motet.training.data.curation.scores import counted_tokens, log_probs
from motet.training.data.dataset import TokenDataset
from motet.training.data.errors import DataError
from motet.training.data.files import RecordSource
from motet.training.data.tokens import Tokens
from tests.training.data.cases import byte_level, load
from tests.training.tables import Whole

SIZE = 260
TOKENIZER = byte_level(chat_template=None)
END = cast("int", TOKENIZER.eos_token_id)


class Bigrams(Whole):
    """p(next | token): `sure` for the one follower of a token, the rest shared evenly by all others."""

    def __init__(self, follower: Mapping[int, int], sure: float) -> None:
        logits = torch.full((SIZE, SIZE), math.log((1 - sure) / (SIZE - 1)), dtype=torch.float64)
        for token, following in follower.items():
            logits[token, following] = math.log(sure)
        self._logits = logits
        self.sizes: list[int] = []  # of the batches that were read, padding included

    def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """The most likely followers, up to the end."""
        return [self._followers(prompt[-1], max_tokens) for prompt in prompts]

    def _followers(self, token: int, max_tokens: int) -> list[int]:
        followers: list[int] = []
        for _ in range(max_tokens):
            token = int(self._logits[token].argmax())
            if token == END:
                break
            followers.append(token)
        return followers

    def __call__(self, batch: Batch) -> Tensor:
        self.sizes.append(batch.input_ids.numel())
        return self._logits[batch.input_ids[batch.counted]]


def chain(text: str) -> dict[int, int]:
    """Each character follows the one before it, the end follows the last; the characters are distinct."""
    ids = [*Tokens(TOKENIZER).encode([text])[0], END]
    assert len(set(ids)) == len(ids)
    return dict(pairwise(ids))


def rows_of(folder: Path, *pairs: tuple[str, str]) -> TokenDataset:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    return load(folder, rows, tokenizer=TOKENIZER, batch={"max_length": 1000})


def places(names: Sequence[str]) -> list[RecordSource]:
    return [RecordSource("f.jsonl", number) for number in range(1, len(names) + 1)]


def test_log_probs_are_sums_over_the_answers_tokens(tmp_path: Path) -> None:
    dataset = rows_of(tmp_path, ("a", "bc"), ("a", "bx"), ("a", "b" * 40), ("b", "c"))
    documents = dataset.sides[""]["plain"]
    sure, other = math.log(0.6), math.log(0.4 / (SIZE - 1))
    even = math.log(1 / SIZE)
    policy = Bigrams(chain("abc"), 0.6)
    policy_rest = torch.log_softmax(policy._logits[ord("x")], 0)[0].item()  # pyright: ignore[reportPrivateUsage]
    assert policy_rest == pytest.approx(even)
    expected = [3 * sure, sure + other + even, sure + 40 * other, 2 * sure]
    for batch_tokens in (1, 50, 10_000):
        assert log_probs(policy, documents, 0, batch_tokens=batch_tokens) == pytest.approx(np.array(expected))
    assert counted_tokens(documents).tolist() == [3, 3, 41, 2]


def test_batches_hold_no_more_tokens_than_asked_for(tmp_path: Path) -> None:
    policy = Bigrams({}, 0.5)
    dataset = rows_of(tmp_path, *(("a", "b" * length) for length in (30, 8, 8, 8, 2)))
    log_probs(policy, dataset.sides[""]["plain"], 0, batch_tokens=20)
    assert policy.sizes == [32, 20, 20]


def test_confidence_is_a_geometric_mean_and_preference_compares_two() -> None:
    confidence = confidences(np.log([0.5 * 0.125, 0.9]), np.array([2.0, 1.0]))
    assert confidence == pytest.approx(np.array([0.25, 0.9]))
    assert preferences(np.array([0.8]), np.array([0.2])) == pytest.approx(np.array([0.8]))


def test_answers_are_the_models_greedy_ones_to_their_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=SIZE, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path)
    member = load_member("model", str(tmp_path), dtype=torch.float32)
    prompts = Tokens(TOKENIZER).encode(["xa", "c", "abcdef"])
    plain: list[list[int]] = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(cast(Any, model)(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        plain.append(ids[len(prompt) :])
    assert engine_answer(member, SIZE)(prompts, 6) == [tuple(ids) for ids in plain]
    end = plain[0][2]
    before_end = [tuple(takewhile(lambda token: token != end, ids)) for ids in plain]
    assert engine_answer(member, end)(prompts, 6) == before_end
    with pytest.raises(DataError, match=r"correction: .*tokens"):
        engine_answer(member, end)([prompts[0] * 3000], 6)


def test_clear_corrects_where_it_is_sure_and_filters_the_rest(tmp_path: Path) -> None:
    dataset = rows_of(tmp_path, ("a", "bc"), ("a", "xy"), ("z", "qr"))
    policy = Bigrams(chain("abc"), 0.9)
    thresholds = Thresholds(confidence=0.5, correct=0.8)
    curation = by_confidence(policy, dataset, Tokens(TOKENIZER), 0, thresholds, policy.answer)
    sources = [record.source for record in dataset.records]
    # of `z` the policy knows nothing: its own answer is no surer than the given one, which is then removed
    assert [(verdict.source, verdict.action) for verdict in curation.verdicts] == [
        (sources[1], "replaced"),
        (sources[2], "removed"),
    ]
    assert curation.answers == {sources[1]: "bc"}
    given = math.exp((math.log(0.1 / (SIZE - 1)) - 2 * math.log(SIZE)) / 3)
    assert curation.verdicts[0].score == pytest.approx(0.9 / (0.9 + given))
    raw = {source: {"prompt": "?", "completion": "old", "id": i} for i, source in enumerate(sources)}
    assert curation.rows(raw, dataset.records) == [
        {"prompt": "?", "completion": "old", "id": 0},
        {"prompt": "?", "completion": "bc", "id": 1},
    ]


def test_answers_that_do_not_end_replace_nothing(tmp_path: Path) -> None:
    dataset = rows_of(tmp_path, ("a", "xy"))
    circle = Bigrams({ord("a"): ord("b"), ord("b"): ord("a")}, 0.9)
    thresholds = Thresholds(correct=0.5, answer_tokens=4)
    assert not by_confidence(circle, dataset, Tokens(TOKENIZER), 0, thresholds, circle.answer).verdicts


def test_correction_needs_prompts(tmp_path: Path) -> None:
    dataset, policy = load(tmp_path, [{"text": "abc"}], tokenizer=TOKENIZER), Bigrams({}, 0.5)
    with pytest.raises(DataError, match=r"train.jsonl:1: correction needs a prompt"):
        by_confidence(policy, dataset, Tokens(TOKENIZER), 0, Thresholds(correct=0.8), policy.answer)


def test_information_is_what_the_expert_knows_more(tmp_path: Path) -> None:
    dataset = rows_of(tmp_path, ("a", "bc"), ("a", "xy"))
    expert, untuned = Bigrams(chain("abc"), 0.9), Bigrams(chain("abc"), 0.3)
    curation = by_information(expert, untuned, dataset, 0, 1.0)
    (verdict,) = curation.verdicts
    assert verdict.source.line == 2
    assert verdict.score == pytest.approx(math.log(0.1 / 0.7))
    assert not by_information(expert, untuned, dataset, 0, -2.0).verdicts


def test_words_put_case_blanks_and_punctuation_aside() -> None:
    assert words("  Anna’s  CAFÉ, № 5!") == words("anna's café no 5") == ["anna", "s", "café", "no", "5"]
    assert words("?!") == ["?!"]


def test_exact_and_near_duplicates_name_the_row_that_stays() -> None:
    base = "the quick brown fox jumps over the lazy dog and runs far away from here today"
    texts = [base, "Something else entirely.", base.upper() + "!", f"{base} again", "The lazy dog runs."]
    sources = places(texts)
    verdicts = find_duplicates(sources, texts, 0.8)
    assert [verdict.to_json() for verdict in verdicts] == [
        {"row": "f.jsonl:3", "action": "removed", "reason": "same text as f.jsonl:1", "score": None},
        {"row": "f.jsonl:4", "action": "removed", "reason": "nearly the text of f.jsonl:1", "score": 14 / 15},
    ]


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), min_size=1, max_size=12))
def test_duplicates_are_those_of_comparing_all_pairs(documents: list[list[str]]) -> None:
    """At J ≥ 0.9 the bands miss a pair once in 10^14; shorter texts than one n-gram are compared whole."""
    texts = [" ".join(document) for document in documents]
    kept: list[int] = []
    removed: list[int] = []
    for i, text in enumerate(texts):
        similar = any(jaccard(shingles(words(text)), shingles(words(texts[k]))) >= 0.9 for k in kept)
        (removed if similar else kept).append(i)
    found = find_duplicates(places(texts), texts, 0.9)
    assert [verdict.source.line - 1 for verdict in found] == removed


def test_shingles_of_texts_shorter_than_an_ngram() -> None:
    assert len(shingles(["one"])) == len(shingles(["one", "two"])) == 1
    assert len(shingles(["one", "two", "three", "four"])) == 2


def test_a_removal_outweighs_a_replacement(tmp_path: Path) -> None:
    dataset = rows_of(tmp_path, ("a", "xy"), ("a", "xy"))
    policy = Bigrams(chain("abc"), 0.9)
    judged = by_confidence(policy, dataset, Tokens(TOKENIZER), 0, Thresholds(correct=0.8), policy.answer)
    both = merged([drop_duplicates(dataset.records, 0.8), judged])
    raw = {record.source: {"prompt": "a", "completion": "xy"} for record in dataset.records}
    assert both.rows(raw, dataset.records) == [{"prompt": "a", "completion": "bc"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "completion": "c", "spans": [[0, 1, 2.0]]}, {"prompt": "p", "completion": "new"}),
        ({"instruction": "p", "output": "c", "input": ""}, {"instruction": "p", "output": "new", "input": ""}),
        (
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]},
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "new"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]},
            {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "new"}]},
        ),
    ],
)
def test_new_answers_stand_where_the_old_ones_stood(row: dict[str, object], expected: dict[str, object]) -> None:
    assert with_answer(row, "new") == expected
