"""POST /v1/responses"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.adapters.responses_answer import ResponsesAdapter
from motet.server.adapters.responses_request import ResponsesRequest
from motet.server.query import check_known
from motet.server.respond import respond
from motet.server.routes.chat import chat_query
from motet.server.service import AnsweringRoute, Served
from motet.server.shapes.adapters import ResponseObject
from motet.server.shapes.answers import STREAMED

router = APIRouter(tags=["OpenAI"], route_class=AnsweringRoute)


@router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
async def responses(body: ResponsesRequest, request: Request, service: Served) -> Response:
    """An answer as output items: thought, text, calls of functions. Nothing is stored: `input` holds all turns."""
    check_known(body, request)
    query = replace(chat_query(body.chat(), request), adapter=ResponsesAdapter(body))
    return await respond(request, service, query)
