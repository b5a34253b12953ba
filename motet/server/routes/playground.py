"""GET /: the playground, a static page whose files lie in the package, and the examples that it offers."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.server.http.errors import ApiError
from motet.server.http.middleware import PAGE_FILES as FILES
from motet.server.service import Served
from motet.server.shapes.answers import NOT_FOUND, UNAUTHORIZED

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parent.parent / "static"
# nothing but its own files, and requests to this server: not even a style that a text on the page would bring
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again, answered 304 while it is the same
}


@router.get("/")
async def page(request: Request) -> Response:
    return _file("index.html", request)


@router.get("/playground/examples", responses=UNAUTHORIZED)
async def examples(service: Served) -> dict[str, Any]:
    """What the operator's file offers to begin with, as far as the request's key may ask it."""
    known = set(service.registry.names)
    examples = service.config.playground.examples
    return {"data": [one.model_dump() for one in examples if known.issuperset((one.model, *one.beside))]}


@router.get("/playground/{name}", responses=NOT_FOUND)
async def file(name: str, request: Request) -> Response:
    return _file(name, request)


def _file(name: str, request: Request) -> Response:
    if name not in FILES:
        raise ApiError(404, f"The page has no file {name[:40]!r}; it has {', '.join(FILES)}.")
    content = (FOLDER / name).read_bytes()
    tag = f'"{sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=FILES[name], headers=headers)
