"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's shapes, errors included."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from motet.server.adapters.messages_answer import MessagesAdapter
from motet.server.adapters.messages_request import CountRequest, MessagesRequest
from motet.server.prepare import prepare
from motet.server.query import check_known
from motet.server.respond import CLIENT_LEFT, reserve, respond, unless_disconnected
from motet.server.routes.chat import chat_query
from motet.server.service import AnsweringRoute, Served
from motet.server.shapes.adapters import MESSAGE_ERRORS, MESSAGE_STREAMED, CountedTokens, MessageObject

router = APIRouter(tags=["Anthropic"], route_class=AnsweringRoute)


@router.post("/v1/messages", response_model=MessageObject, responses=MESSAGE_STREAMED)
async def messages(body: MessagesRequest, request: Request, service: Served) -> Response:
    """An answer as content blocks: thought, text, uses of tools."""
    check_known(body, request)
    query = replace(chat_query(body.chat(), request), adapter=MessagesAdapter())
    return await respond(request, service, query)


@router.post("/v1/messages/count_tokens", response_model=CountedTokens, responses=MESSAGE_ERRORS)
async def count_tokens(body: CountRequest, request: Request, service: Served) -> Response:
    """How many tokens a request's prompt has, as `usage` would count them."""
    check_known(body, request)
    query = chat_query(body.chat(), request)
    with reserve(request, service, query):
        jobs = await unless_disconnected(request, prepare(service, query))
    if jobs is None:
        return Response(status_code=CLIENT_LEFT)
    return JSONResponse({"input_tokens": jobs[0].num_prompt_tokens})
