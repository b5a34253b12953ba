"""Policies: which keys reach which models, what stands in for a model, and what a client may still set.

Whatever could give back what a stand-in hides is closed; each field of `Allow` opens one thing, and `GIVES_AWAY` says
what goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field

from motet.operator.section import Section

MAX_LOGPROBS = 5  # alternatives beside a token


class Allow(Section):
    """What a client may set or see under a policy; all of it is closed unless the operator opens it."""

    max_temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """The highest temperature; 0: every answer is the most likely one."""
    max_n: Annotated[int, Field(ge=1, le=128)] = 1
    """The most answers to one prompt."""
    filters: bool = False
    """`top_k`, `top_p` and `min_p` of the client's choice where answers are drawn."""
    seeds: bool = False
    """Seeds of the client's choice; else what is drawn depends on the prompt alone, and is the same each time."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    """Log-probs of the answer, rounded to a tenth, with so many alternatives per token at most; 0: none."""
    exact_logprobs: bool = False
    """Log-probs are not rounded."""
    steered_logprobs: bool = False
    """Log-probs of tokens that the client names, and beside lists, biases, grammars and penalties."""
    scoring: bool = False
    """`/v1/score`, and log-probs of the prompt (`echo`, `prompt_logprobs`)."""
    traces: bool = False
    """`trace`, and the members' own scores in `/v1/score`."""
    token_lists: bool = False
    """`allowed_token_ids` and `bad_words`."""
    logit_bias: Annotated[float, Field(ge=0, le=100)] = 0.0
    """The largest bias up or down; 0: none."""
    structured_outputs: bool = False
    """`response_format`, `structured_outputs` and `guided_…`: schemas, choices, patterns, grammars."""
    tools: bool = False
    """`tools` and `tool_choice`, and turns of a conversation that called them."""
    thinking: bool = False
    """`reasoning_effort`, `thinking_token_budget`, and earlier thoughts in `messages`."""
    lifted_masks: bool = False
    """Masks of the composition give way to lists and grammars; else an answer of which nothing is left ends."""
    penalties: bool = False
    """`presence_penalty`, `frequency_penalty` and `repetition_penalty`."""
    endings: bool = False
    """`min_tokens`, `ignore_eos` and `stop_token_ids`."""
    prefill: bool = False
    """Answers that the client has begun, and marks of the chat template inside of messages."""
    completions: bool = False
    """`/v1/completions`: texts that no chat template surrounds."""
    compositions: bool = False
    """`composition`, `guidance_scale` and `negative_prompt`, over the policy's models as they are in the file."""
    compare: bool = False
    """`/v1/compare`, between the policy's models."""
    template_variables: bool = False
    """`chat_template_kwargs`."""
    truncation: bool = False
    """`truncate_prompt_tokens`."""
    tokenizer: bool = False
    """`/tokenize`, `/detokenize` and `/tokenizer_info`."""
    token_ids: bool = False
    """Token ids of prompt and answer, and special tokens in its text."""
    members: bool = False
    """What was composed, and what a gate said: `motet` in answers, `composition` on model cards, members' names in
    refusals."""
    cached_tokens: bool = False
    """`usage.prompt_tokens_details.cached_tokens`."""
    speculation: bool = False
    """The embedded engine guesses ahead, as it is set or as `speculation` asks, and draws mixtures member by member."""
    metrics: bool = False
    """`/metrics`."""

    def opened(self) -> Iterator[str]:
        """The fields that are not as they are by default."""
        for name, field in type(self).model_fields.items():
            if getattr(self, name) != field.default:
                yield name


GIVES_AWAY: Mapping[str, str] = {
    "max_temperature": "samples say what the most likely answer does not, others at every temperature; the hotter, the "
    "nearer to guessing",
    "max_n": "every further sample is another chance that a forgotten answer is among them",
    "filters": "the value at which a token falls out of the draw, found by bisection, is an exact ratio of two scores",
    "seeds": "the same question can be drawn again and again, as with a larger max_n",
    "logprobs": "the lowest token that a mask keeps is often the secret itself, and two answers tell ratios of scores",
    "exact_logprobs": "a few digits more let differences of log-probs be solved for the members'",
    "steered_logprobs": "the client chooses whose log-prob it reads: the whole distribution, token by token",
    "scoring": "any text can be tried: the true answer stands out among false ones; prompt_logprobs holds token ids",
    "traces": "the plain base's own alternatives and every member's log-prob, token by token: everything",
    "token_lists": "a list compares any two tokens, and what a ban uncovers is the next best: the order of all",
    "logit_bias": "biases weigh tokens against each other until the arg-max tips: log-probs by bisection",
    "structured_outputs": "a choice or pattern of guesses makes the composition point at one of them",
    "tools": "the schema of a tool's arguments is a grammar: as with structured outputs, guesses are compared",
    "thinking": "a thought cut short, or put into the model's mouth, is answered as nobody has audited it",
    "lifted_masks": "a list or grammar of implausible tokens is answered by the composition without its masks",
    "penalties": "a repetition penalty raises or bans whatever the client put into its prompt",
    "endings": "an end that may not come, as a refusal's, uncovers what stands behind it; stop tokens become bans",
    "prefill": "an answer that begins with the fact, or with consent, goes on where it would not have begun",
    "completions": "texts without a chat template: answers that the client has begun, and prompts of any form",
    "compositions": "weight 0, other weights, mixtures, novelty: the models themselves, also those behind stand-ins",
    "compare": "several answers side by side; no more than as many requests",
    "template_variables": "the template's own switches, which may open the answer or drop the system prompt",
    "truncation": "a prompt cut in front loses its template: a begun answer is left",
    "tokenizer": "the ids that lists and biases need, and the base's template and special tokens",
    "token_ids": "the base's rendered prompt, and which model's end ended the answer",
    "members": "the names, roles and weights of what is composed, and a gate's score, by which it can be evaded",
    "cached_tokens": "how much of a prompt this key sent before",
    "speculation": "the pace of a stream shows where its composition departs from the draft, and who was drawn",
    "metrics": "names of members and strategies, and when others ask",
}


def _as_mapping(value: Any) -> Any:
    """A list of names, each of which stands for what has that name."""
    return dict.fromkeys(cast("list[Any]", value)) if isinstance(value, list | tuple) else value


class PolicyConfig(Section):
    """Which keys it is for, which models they reach, and what they may set."""

    keys: tuple[str, ...] = ()
    """Names of keys of `server.api_keys`, or their `sha256:` digests."""
    default: bool = False
    """It is for every key that no policy names, and for everybody where the server has no keys."""
    models: Annotated[dict[str, str | None], BeforeValidator(_as_mapping)] = Field(default={})
    """What a request's `model` may say, and the model or composition that answers; nothing: what has that name."""
    allow: Allow = Allow()
    """What a client may set or see beyond the messages."""
    unrestricted: bool = False
    """Everything may be asked for, as if there were no policies."""
    admin: bool = False
    """May load and unload models and read the file anew (`/v1/admin/…`)."""

    def targets(self) -> dict[str, str]:
        """What clients name → what answers."""
        return {name: target or name for name, target in self.models.items()}
