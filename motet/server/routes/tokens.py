"""POST /tokenize, POST /detokenize, GET /tokenizer_info: vLLM's shapes, read by evaluation harnesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from motet.composers.plan import Stream
from motet.operator.loaded import LoadedModel
from motet.server.answer_size import CODE
from motet.server.encodings import Encodings, tokenized
from motet.server.http.bodies import JsonRoute
from motet.server.http.errors import invalid
from motet.server.prompts import check_tokens, context
from motet.server.query import RequestPrompt, check_known
from motet.server.respond import as_json, unless_disconnected
from motet.server.service import Served, Service
from motet.server.shapes.answers import INVALID, Detokenized, Tokenized
from motet.server.shapes.requests import MAX_TOKEN_IDS, Message
from motet.server.shapes.token_requests import DetokenizeRequest, TokenizeRequest

router = APIRouter(tags=["tokens"], route_class=JsonRoute)
ASIDE = CapacityLimiter(1)  # threads
MAX_TEXT = 8 << 20  # characters that /detokenize sends back
ModelName = Annotated[
    str | None, Query(description="Whose tokenizer; may be missing where all models have one vocabulary.")
]


@router.post("/tokenize", response_model=Tokenized, responses=INVALID)
async def tokenize(body: TokenizeRequest, request: Request, service: Served) -> Response:
    """Token ids of a text or of rendered messages, as the named model (a composition: its base) reads them."""
    check_known(body, request)
    member = service.registry.member(body.model)
    return await _answered(lambda encodings: _told(body, member, encodings), request, service)


async def _answered(work: Callable[[Encodings], dict[str, Any]], request: Request, service: Service) -> Response:
    """What is asked here waits behind its own kind alone: texts of answers never wait for it."""
    service.admission.check_running()
    return await as_json(await unless_disconnected(request, tokenized(work, ASIDE)), service)


def _told(body: TokenizeRequest, member: LoadedModel, encodings: Encodings) -> dict[str, Any]:
    """Raises ApiError (400): more tokens than /detokenize takes."""
    ids = _ids(body, member, encodings)
    if len(ids) > MAX_TOKEN_IDS:
        said = f"The text has {len(ids):,} tokens, at most {MAX_TOKEN_IDS:,} are sent back."
        raise invalid(said, "prompt" if body.messages is None else "messages", CODE)
    names = [member.tokenizer.backend.id_to_token(token) for token in ids] if body.return_token_strs else None
    return {"tokens": ids, "count": len(ids), "max_model_len": member.info.max_model_len, "token_strs": names}


def _ids(body: TokenizeRequest, member: LoadedModel, encodings: Encodings) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("Give either 'prompt' or 'messages'.", "prompt")
    if body.prompt is not None:
        return encodings.ids(body.prompt, member, special=body.add_special_tokens is not False)
    return list(context(Stream("base", member.info.name), member, _messages(body.messages or [], body), encodings))


def _messages(messages: list[Message], body: TokenizeRequest) -> RequestPrompt:
    return RequestPrompt(
        messages=tuple(message.turn() for message in messages),
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
    )


@router.post("/detokenize", response_model=Detokenized, responses=INVALID)
async def detokenize(body: DetokenizeRequest, request: Request, service: Served) -> Response:
    """The text of token ids, special tokens included; of at most 8,388,608 characters."""
    check_known(body, request)
    member = service.registry.member(body.model)
    return await _answered(lambda _: {"prompt": _text(body.tokens, member)}, request, service)


def _text(ids: list[int], member: LoadedModel) -> str:
    """Raises ApiError (400): ids outside of the vocabulary, or whose texts together are too long: some tokens have more
    than a hundred characters."""
    check_tokens(ids, member, "tokens")
    if len(ids) * member.tokenizer.longest > MAX_TEXT:
        size = sum(count * len(member.tokenizer.text_of(token)) for token, count in Counter(ids).items())
        if size > MAX_TEXT:
            raise invalid(f"The text has {size:,} characters, at most {MAX_TEXT:,} are sent back.", "tokens", CODE)
    return member.tokenizer.decode(ids)


@router.get("/tokenizer_info", responses=INVALID)
async def tokenizer_info(service: Served, model: ModelName = None) -> dict[str, Any]:
    """Special tokens and chat template, for clients that render prompts themselves."""
    tokenizer = service.registry.member(model).tokenizer
    hf = tokenizer.hf
    special: dict[str, Any] = {name: str(value) for name, value in hf.special_tokens_map.items()}
    return {"tokenizer_class": type(hf).__name__, "chat_template": tokenizer.chat_template} | special
