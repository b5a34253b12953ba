"""The places of answers, asked for before anything of a request is read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from motet.server.http.bodies import JsonRoute
from motet.server.service import get_service


class AnsweringRoute(JsonRoute):
    """A route whose answers take places: while there is none, bodies are not even read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            (await get_service(request)).admission.check_room()
            return await handler(request)

        return handle
