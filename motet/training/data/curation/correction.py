"""A policy's own answers to a dataset's prompts, and how confident it is of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from motet.training.data.curation.confidence import confidences, preferences
from motet.training.data.curation.generation import greedy
from motet.training.data.curation.scores import counted_tokens, log_probs
from motet.training.data.dataset import TokenDataset
from motet.training.data.documents import DocumentsBuilder
from motet.training.data.errors import DataError
from motet.training.data.records import Text
from motet.training.data.rendered import Rendered
from motet.training.data.tokens import Tokens
from motet.training.policy import Policy

BATCH = 32  # prompts that are answered at once


def own_answers(
    policy: Policy, dataset: TokenDataset, tokens: Tokens, given: NDArray[np.float64], pad_id: int, max_tokens: int
) -> tuple[list[str], NDArray[np.float64]]:
    """The policy's greedy answers (n), and P(own better than the given one) (n,); 0 where it has nothing to say.

    Args:
        given: (n,) the confidences of the given answers.
        max_tokens: of an answer; longer ones are no answers.

    Raises:
        DataError: rows without a prompt, or with several answers.
    """
    times = Counter(record.source for record in dataset.records)  # rows of several answers make several records
    problems = [
        f"{record.source}: correction needs a prompt and one answer, as the last message"
        for record in dataset.records
        if isinstance(part := record.sides[""], Text) or not part.has_one_answer or times[record.source] > 1
    ]
    if problems:
        raise DataError(problems)
    prompts = [_prompt(dataset, index) for index in range(len(dataset))]
    answers = [
        answer
        for start in range(0, len(prompts), BATCH)
        for answer in greedy(policy, prompts[start : start + BATCH], tokens.eos, pad_id, max_tokens)
    ]
    builder = DocumentsBuilder()
    builder.extend(_document(prompt, [*answer, tokens.eos]) for prompt, answer in zip(prompts, answers, strict=True))
    documents = builder.build()
    own = confidences(log_probs(policy, documents, pad_id), counted_tokens(documents))
    texts = [cast("str", tokens.hf.decode(answer, skip_special_tokens=True)).strip() for answer in answers]
    usable = np.array([bool(text) and len(a) < max_tokens for text, a in zip(texts, answers, strict=True)])
    return texts, np.where(usable, preferences(own, given), 0.0)


def _prompt(dataset: TokenDataset, index: int) -> list[int]:
    example = dataset.example(index)
    return list(example.input_ids[: list(example.counted).index(True)])


def _document(prompt: Sequence[int], answer: Sequence[int]) -> Rendered:
    ids = [*prompt, *answer]
    return Rendered(ids, [i >= len(prompt) for i in range(len(ids))], [1.0] * len(ids))
