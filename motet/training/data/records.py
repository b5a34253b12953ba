"""One row, whatever its format: a text, or a prompt with its answers."""

from __future__ import annotations

from dataclasses import dataclass

from motet.training.data.files import RecordSource
from motet.training.data.messages import Message, Messages, Tools
from motet.training.data.spans import Span

Label = bool | int | str


@dataclass(frozen=True, slots=True)
class Text:
    """A document without a prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and what follows it; the assistant's turns in `completion` are answers.

    Both are texts, or both are messages. A whole conversation is a completion with an empty prompt. `is_cut`: both are
    pieces of one text, no turns. `tools`: what the chat template is told of tools.
    """

    prompt: str | Messages
    completion: str | Messages
    is_cut: bool = False
    tools: Tools = ()

    @property
    def messages(self) -> Messages:
        """The whole as chat messages; a text is the user's prompt or the assistant's answer."""
        return self._prompt_messages + self._completion_messages

    @property
    def turns(self) -> tuple[int, ...]:
        """Which of `messages` are answers that count."""
        first = len(self._prompt_messages)
        completion = self._completion_messages
        return tuple(first + i for i, message in enumerate(completion) if message.is_answer)

    @property
    def has_one_answer(self) -> bool:
        """Whether the last message is the one answer."""
        return self.turns == (len(self.messages) - 1,)

    @property
    def plain_prompt(self) -> str:
        """What stands before the last message: a text as it is, messages' contents one per line."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def plain_completion(self) -> str:
        """The last message's content."""
        return self.completion if isinstance(self.completion, str) else self.completion[-1].content

    @property
    def weight(self) -> float:
        """The loss weight of the last message."""
        return 1.0 if isinstance(self.completion, str) else self.completion[-1].weight

    @property
    def _prompt_messages(self) -> Messages:
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt

    @property
    def _completion_messages(self) -> Messages:
        return (Message("assistant", self.completion),) if isinstance(self.completion, str) else self.completion


Part = Text | Answer


@dataclass(frozen=True, slots=True)
class Record:
    """A row's documents by side: one under the name "", with `counterfactual` or not, or `chosen` and `rejected`."""

    source: RecordSource
    sides: dict[str, Part]
    spans: tuple[Span, ...] = ()
    label: Label | None = None
