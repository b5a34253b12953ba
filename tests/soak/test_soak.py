"""What `python -m tests.soak` sees in an answer."""

from __future__ import annotations

import httpx
import pytest

from tests.soak.client import Answer, judge
from tests.soak.generator import Request

SHAPED = b'{"error": {"message": "%s", "type": "invalid_request_error", "param": null, "code": null}}'
STREAM = {"content-type": "text/event-stream"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "kinds"),
    [
        (400, {}, SHAPED % b"No.", []),
        (503, {"retry-after": "3"}, SHAPED % b"Full.", []),
        (500, {}, SHAPED % b"Oh.", ["5xx"]),
        (503, {}, SHAPED % b"Full.", ["5xx"]),
        (400, {}, b"Bad Request", ["error_shape"]),
        (422, {}, b'{"detail": []}', ["error_shape"]),
        (400, {}, SHAPED % (b"b" * 2048), ["error_size"]),
        (400, {}, SHAPED % (b"a" * 300), ["echo"]),
        (200, {"content-type": "application/json"}, b'{"logprob": NaN}', ["not_json"]),
        (200, STREAM, b"data: {}\n\n", ["stream_cut"]),
        (200, STREAM, b'data: {"error": {"type": "server_error"}}\n\ndata: [DONE]\n\n', ["stream_error"]),
        (200, STREAM, b"data: {}\n\ndata: [DONE]\n\n", []),
    ],
)
def test_faults_are_seen(status: int, headers: dict[str, str], body: bytes, kinds: list[str]) -> None:
    sent = Request("POST", "/v1/completions", body=b"a" * 1000)
    answer = Answer(status, 0.1, httpx.Headers(headers), body)
    assert [finding.kind for finding in judge(sent, 0, answer)] == kinds
