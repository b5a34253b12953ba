"""A model's own answers to a dataset's prompts, and how confident it is of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from motet.composers.plan import single
from motet.engines.base import RequestTooLarge
from motet.engines.torch import Member
from motet.engines.torch.offline import generate
from motet.training.data.curation.confidence import confidences, preferences
from motet.training.data.curation.scores import counted_tokens, log_probs
from motet.training.data.dataset import TokenDataset
from motet.training.data.documents import DocumentsBuilder
from motet.training.data.errors import DataError
from motet.training.data.records import Text
from motet.training.data.rendered import Rendered
from motet.training.data.tokens import Tokens
from motet.training.policy import Policy

AT_ONCE = 32  # prompts that are answered together

# prompts, none empty, and how long an answer may be → the greedy answers, without their ends
Answer = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]


def engine_answer(member: Member, end: int) -> Answer:
    """Answers of a model by the embedded engine, up to the token `end`. They raise DataError where a prompt and its
    answer are longer than the model reads."""

    def answer(prompts: Sequence[Sequence[int]], max_tokens: int) -> Sequence[Sequence[int]]:
        members, contexts = {member.name: member}, [(prompt,) for prompt in prompts]
        try:
            return generate(members, single(member.name), contexts, max_tokens=max_tokens, ends=(end,), rows=AT_ONCE)
        except RequestTooLarge as error:
            raise DataError([f"correction: {error}"]) from error

    return answer


def own_answers(
    policy: Policy,
    answer: Answer,
    dataset: TokenDataset,
    tokens: Tokens,
    given: NDArray[np.float64],
    pad_id: int,
    max_tokens: int,
) -> tuple[list[str], NDArray[np.float64]]:
    """A model's greedy answers (n), and P(own better than the given one) (n,); 0 where it has nothing to say.

    Args:
        policy: judges how confident the model is of its answers.
        answer: the model's own.
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
    answers = answer(prompts, max_tokens)
    builder = DocumentsBuilder()
    builder.extend(_document(prompt, [*own, tokens.eos]) for prompt, own in zip(prompts, answers, strict=True))
    documents = builder.build()
    own = confidences(log_probs(policy, documents, pad_id), counted_tokens(documents))
    texts = [cast("str", tokens.hf.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers]
    usable = np.array([bool(text) and len(ids) < max_tokens for text, ids in zip(texts, answers, strict=True)])
    return texts, np.where(usable, preferences(own, given), 0.0)


def _prompt(dataset: TokenDataset, index: int) -> list[int]:
    example = dataset.example(index)
    return list(example.input_ids[: list(example.counted).index(True)])


def _document(prompt: Sequence[int], answer: Sequence[int]) -> Rendered:
    ids = [*prompt, *answer]
    return Rendered(ids, [i >= len(prompt) for i in range(len(ids))], [1.0] * len(ids))
