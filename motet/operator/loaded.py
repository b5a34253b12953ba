"""What the server knows of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from motet.composers.vocabulary import Vocabulary
from motet.engines.grammars import Grammars
from motet.experts.bundle import ExpertBundle
from motet.experts.fit import Known
from motet.models.chat_template import ChatTemplate
from motet.models.info import ModelInfo
from motet.models.thoughts import ThinkTags
from motet.models.tokenizer import Tokenizer
from motet.models.tool_formats import ToolFormat

Template = Literal["chat", "plain"]


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model with all that is known of it. `template`: how it reads messages unless a role says otherwise."""

    info: ModelInfo
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    template: Template
    source: str  # path or hub id, for model cards
    expert: ExpertBundle | None = None  # what its expert.json says
    weights: str | None = None  # the weights' fingerprint, where a bundle asks for it
    check_expert: bool = True  # whether compositions must keep to `expert`
    own_format: ToolFormat | None = None  # of calls, by the operator's word
    describe_tools: bool = True  # in words, where its template knows none
    close_json: bool = False  # in the last third of an answer
    own_tags: ThinkTags | Literal["none"] | None = None  # of thoughts, by the operator's word

    @cached_property
    def grammars(self) -> Grammars:
        """Structured outputs in this model's tokens."""
        return Grammars(self.tokenizer, self.info.vocab_size)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """What it reads messages through, unless a role says otherwise."""
        return self.tokenizer.template if self.template == "chat" else None

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How it writes calls of tools: as the operator says, or as its template does."""
        style = None if self._template is None else self._template.calls
        return self.own_format or (None if style is None else style.format)

    @cached_property
    def calls_once(self) -> bool:
        """Whether its template takes one call in a turn at most."""
        style = None if self._template is None else self._template.calls
        return style is not None and style.is_single

    @cached_property
    def think_tags(self) -> ThinkTags | None:
        """What stands around its thoughts: as the operator says, or as its template does."""
        if self.own_tags == "none":
            return None
        return self.own_tags or (None if self._template is None else self._template.think_tags)

    @property
    def known(self) -> Known:
        """As the experts' checks see it."""
        return Known(self.expert if self.check_expert else None, self.weights)
