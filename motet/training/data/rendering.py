"""Records as token sequences, in every form that some stream reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from motet.training.batch import PromptForm
from motet.training.data.chat import render_chats
from motet.training.data.errors import RowError
from motet.training.data.records import Answer, Part, Text
from motet.training.data.rendered import Rendered
from motet.training.data.spans import REST, Span, char_weights, token_weights
from motet.training.data.tokens import Tokens

Item = tuple[Part, tuple[Span, ...]]
Forms = Mapping[PromptForm, Rendered]


@dataclass(frozen=True, slots=True)
class Renderer:
    """How the records of a dataset become tokens.

    An answer's tokens are the same in all forms, so that the distributions of streams which read different prompts
    can be compared token by token: those that the chat template makes of it where a form is `chat`, else those of the
    completion alone and EOS.
    """

    tokens: Tokens
    primary: PromptForm
    forms: Collection[PromptForm]  # with `primary`
    loss: Literal["completion", "all"]
    span_weights: Mapping[str, float]
    max_length: int | None  # None: any length
    truncate: bool

    def render(self, items: Sequence[Item]) -> list[Forms | RowError]:
        """Each item in every form, or what is wrong with it."""
        rendered = self._texts(items) | self._answers(items)
        return [self._fitted(rendered[number]) for number in range(len(items))]

    def _texts(self, items: Sequence[Item]) -> dict[int, Forms | RowError]:
        texts = [(number, part, spans) for number, (part, spans) in enumerate(items) if isinstance(part, Text)]
        documents = self._ended([(part.text, spans) for _, part, spans in texts])
        prefix = self.tokens.prefix
        return {
            number: dict.fromkeys(self.forms, self._all_counted(Rendered(
                prefix + document.ids,
                [False] * len(prefix) + document.counted,
                [self._rest] * len(prefix) + document.weights,
            )))
            for (number, _, _), document in zip(texts, documents, strict=True)
        }  # fmt: skip

    def _answers(self, items: Sequence[Item]) -> dict[int, Forms | RowError]:
        answers = {number: (part, spans) for number, (part, spans) in enumerate(items) if isinstance(part, Answer)}
        if "chat" in self.forms:
            rendered = render_chats(self.tokens, list(answers.values()), self.span_weights, whole=self.loss == "all")
            outcomes = dict(zip(answers, rendered, strict=True))
        else:
            outcomes = self._plain_answers(answers)
        if "plain" in self.forms:
            outcomes |= {number: refused for number, (part, _) in answers.items() if (refused := _unread(part))}
        single = [number for number, (part, _) in answers.items() if part.has_one_answer]
        prompts = self._plain_prompts([answers[number][0] for number in single])
        plain = dict(zip(single, prompts, strict=True))
        return {number: self._in_forms(outcome, plain.get(number)) for number, outcome in outcomes.items()}

    def _plain_answers(self, answers: Mapping[int, tuple[Answer, tuple[Span, ...]]]) -> dict[int, Rendered | RowError]:
        single = {number: item for number, item in answers.items() if item[0].has_one_answer}
        documents = self._ended([(part.plain_completion, spans) for part, spans in single.values()])
        parts = [part for part, _ in single.values()]
        ended = [document.weighed(part.weight) for document, part in zip(documents, parts, strict=True)]
        refused = RowError("several answers, or messages behind the last, need a chat template; allowed: one answer")
        return {**dict.fromkeys(answers, refused), **dict(zip(single, ended, strict=True))}

    def _plain_prompts(self, parts: Sequence[Answer]) -> list[list[int]]:
        if "plain" not in self.forms:
            return [[] for _ in parts]
        encoded = self.tokens.encode([part.plain_prompt for part in parts])
        return [self.tokens.prefix + ids or self.tokens.start for ids in encoded]

    def _in_forms(self, outcome: Rendered | RowError, plain: list[int] | None) -> Forms | RowError:
        if isinstance(outcome, RowError):
            return outcome
        if not any(outcome.counted):
            return RowError("no token counts")
        prompts = {"plain": plain, "none": self.tokens.start}
        forms: dict[PromptForm, Rendered] = {}
        for form in self.forms:
            if form == "chat":
                forms[form] = self._all_counted(outcome)
            elif plain is None:
                return RowError(f"the form {form!r} needs one answer, as the last message")
            else:
                forms[form] = self._all_counted(outcome.after(prompts[form] or [], self._rest))
        return forms

    def _ended(self, texts: Sequence[tuple[str, tuple[Span, ...]]]) -> list[Rendered]:
        """Texts with EOS behind them, all of it counted, in the weights of their spans."""
        if not any(spans for _, spans in texts):
            return [self._end(ids, [self._rest] * len(ids)) for ids in self.tokens.encode([text for text, _ in texts])]
        encoded = self.tokens.encode_with_offsets([text for text, _ in texts])
        return [
            self._end(ids, token_weights(offsets, char_weights(text, spans, self.span_weights), 0, self._rest))
            for (ids, offsets), (text, spans) in zip(encoded, texts, strict=True)
        ]

    def _end(self, ids: list[int], weights: list[float]) -> Rendered:
        if not ids or ids[-1] != self.tokens.eos:
            ids, weights = [*ids, self.tokens.eos], [*weights, self._rest]
        return Rendered(ids, [True] * len(ids), weights)

    def _all_counted(self, document: Rendered) -> Rendered:
        """Never the first token; all others where `loss` is all."""
        if self.loss == "completion":
            return document if not document.counted[0] else _uncount_first(document)
        return Rendered(document.ids, [False] + [True] * (len(document) - 1), document.weights)

    def _fitted(self, forms: Forms | RowError) -> Forms | RowError:
        """Within the allowed length, by cutting the same tokens off the end of every form."""
        if isinstance(forms, RowError):
            return forms
        if self.max_length is not None:
            longest = max(map(len, forms.values()))
            excess = longest - self.max_length
            if excess > 0 and not self.truncate:
                return RowError(f"{longest} tokens, batch.max_length is {self.max_length}; batch.truncate would cut")
            if excess > 0:
                forms = {form: document.cut(len(document) - excess) for form, document in forms.items()}
        if not all(any(document.counted) for document in forms.values()):
            return RowError(f"no token counts{f' within {self.max_length} tokens' if self.max_length else ''}")
        targets = [document.targets for document in forms.values()]
        assert all(other == targets[0] for other in targets), "the forms' targets differ"
        return forms

    @property
    def _rest(self) -> float:
        return self.span_weights.get(REST, 1.0)


def _unread(part: Answer) -> RowError | None:
    """What only a chat template could read of a row."""
    named = [name for message in part.messages for name in message.fields] + ["tools"] * bool(part.tools)
    return RowError(f"{named[0]}: only a chat template reads it; the form here is plain") if named else None


def _uncount_first(document: Rendered) -> Rendered:
    return Rendered(document.ids, [False, *document.counted[1:]], document.weights)


def forms_of(primary: PromptForm, views: Iterable[PromptForm]) -> tuple[PromptForm, ...]:
    """All forms, each once, the primary one first."""
    return tuple(dict.fromkeys((primary, *views)))
