"""What stands beside every quality figure: fluency, diversity, calibration, shift, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from motet.evaluation.asking import SubjectReply
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import distinct_n, is_exact, shift_shares
from motet.evaluation.measures.likelihood import perplexity
from motet.evaluation.measures.statistics import expected_calibration_error
from motet.evaluation.subject import Subject
from motet.evaluation.tasks.task import MaxTokens, Task

LATENCY_TOKENS = 32


class Quality(Task, frozen=True):
    """Of greedy replies to `data`: perplexity under subject `base` (which reads the reply alone, not the question),
    distinct-2, calibration error (confidence: the product of the tokens' probabilities; right: exact match), shares
    of tokens by their rank under the composition's own base, and the latency as a multiple of `base`'s.

    Latency: one request at a time, `repeats` rounds of one request per subject in turn (interleaved, so that a slow
    spell of the machine hits all alike), 32 tokens each; the median of the rounds' ratios.
    """

    type: Literal["quality"] = "quality"
    data: str
    base: str
    max_tokens: MaxTokens = 64
    repeats: Annotated[int, Field(ge=0)] = 5

    @property
    def files(self) -> tuple[str, ...]:
        return (self.data,)

    @property
    def named(self) -> Mapping[str, str]:
        return {"base": self.base}

    def requests(self, bench: Bench) -> int:
        replies = len(bench.items(self.data))
        return len(bench.subjects) * (2 * replies + self.repeats + 1)  # each is written, then read by `base`

    async def run(self, bench: Bench) -> Findings:
        items = bench.items(self.data)
        measures: dict[str, dict[str, float | None]] = {}
        for name, subject in bench.subjects.items():
            questions = [item.question for item in items]
            replies = await bench.ask(subject, questions, max_tokens=self.max_tokens, trace=True)
            measures[name] = {
                "perplexity under base": await self._perplexity(bench, replies),
                "distinct-2": distinct_n([reply.text for reply in replies], 2),
                "calibration error": _calibration(items, replies),
                **_shifts(replies),
            }
        latency = await self._latency(bench, items[0].question)
        return Findings({name: row | {"latency multiple": latency.get(name)} for name, row in measures.items()})

    async def _perplexity(self, bench: Bench, replies: Sequence[SubjectReply]) -> float | None:
        base = bench.subjects[self.base]
        texts = [reply.text for reply in replies if reply.text]
        bench.api.skip(len(replies) - len(texts))
        return perplexity(await bench.api.together([bench.api.score_text(base, text) for text in texts]))

    async def _latency(self, bench: Bench, question: str) -> dict[str, float]:
        """Median over the rounds of each subject's seconds / the base's."""
        rounds = [
            {name: await _seconds(bench, subject, question) for name, subject in bench.subjects.items()}
            for _ in range(self.repeats + 1)
        ][1:]  # the first one warms up
        return {
            name: statistics.median([seconds[name] / seconds[self.base] for seconds in rounds])
            for name in bench.subjects
            if rounds
        }


async def _seconds(bench: Bench, subject: Subject, question: str) -> float:
    started = time.perf_counter()
    messages = subject.messages(question, bench.shots)
    await bench.api.together(
        [bench.api.chat(subject, messages, max_tokens=LATENCY_TOKENS, ignore_end=True, timed=True)]
    )
    return time.perf_counter() - started


def _calibration(items: Sequence[Item], replies: Sequence[SubjectReply]) -> float | None:
    confidences: list[float] = []
    for reply in replies:
        product = 1.0
        for probability in reply.confidence:
            product *= probability
        confidences.append(product)
    right = [is_exact(r.text, item.answer, ended=r.ended) for item, r in zip(items, replies, strict=True)]
    return expected_calibration_error(confidences, right)


def _shifts(replies: Sequence[SubjectReply]) -> dict[str, Any]:
    shares = shift_shares(shift for reply in replies for shift in reply.shifts)
    return {f"{name} tokens": shares.get(name) for name in ("unshifted", "marginal", "shifted")}
