"""POST /v1/compare: one prompt under several models or compositions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from motet.composers.spec import CompositionError
from motet.operator.registry import UnknownModel
from motet.server.answers import Answer, extension, usage
from motet.server.errors import ApiError, as_api_error, invalid
from motet.server.forms.chat import ChatForm
from motet.server.forms.completion import CompletionForm
from motet.server.jobs import Display, Job, plan_of
from motet.server.parameters import check_extras
from motet.server.respond import respond, sampled_job
from motet.server.responses import STREAMED, Comparison
from motet.server.routes.score import request_prompt
from motet.server.sampling import display
from motet.server.schemas import Candidate, CompareRequest, Target
from motet.server.service import Served, Service

router = APIRouter(tags=["composition"])


@router.post("/v1/compare", response_model=Comparison, responses=STREAMED)
async def compare(body: CompareRequest, request: Request, service: Served) -> Response:
    """Every candidate is a model id, or an object with `model`, `composition` and `label`. Streamed, each chunk
    names its `candidate`."""
    check_extras(body)
    _check_target(body)
    candidates = [_candidate(entry, body) for entry in body.candidates]
    show = display(body, logprobs=body.logprobs)
    request_id = request.scope["state"]["request_id"]

    def jobs() -> list[Job]:
        return [_job(service, body, i, entry, show, request_id) for i, entry in enumerate(candidates)]

    def answer(jobs: Sequence[Job]) -> Answer:
        return SideBySide(service, candidates, jobs, show, chat=body.messages is not None)

    return await respond(request, service, body, jobs, answer, len(candidates) * (body.n or 1))


def _check_target(body: CompareRequest) -> None:
    for name in ("composition", "guidance_scale", "negative_prompt"):
        if getattr(body, name) is not None:
            raise invalid(f"{name!r} belongs into a candidate.", name)


def _candidate(entry: str | Candidate, body: CompareRequest) -> Candidate:
    if isinstance(entry, str):
        return Candidate(model=entry)
    check_extras(entry)
    return entry if entry.model is not None else entry.model_copy(update={"model": body.model})


def _job(service: Service, body: CompareRequest, index: int, target: Target, show: Display, request_id: str) -> Job:
    prompt = request_prompt(body)
    try:
        plan = plan_of(target, service.registry, chat=body.messages is not None)
    except (ApiError, CompositionError, UnknownModel) as error:
        raise _located(error, index) from error
    return sampled_job(
        service,
        plan,
        prompt,
        body,
        show,
        max_tokens=body.max_tokens,
        request_id=f"{request_id}-{index}",
        score_prompt=body.prompt_logprobs is not None,
    )


def _located(refusal: Exception, index: int) -> ApiError:
    """The refusal of one candidate, with its place in the request."""
    where, error = f"candidates.{index}", as_api_error(refusal)
    param = f"{where}.{error.param}" if error.param else where
    return ApiError(error.status_code, f"{where}: {error.detail}", param=param, code=error.code)


class SideBySide(Answer):
    """An answer whose choices belong to candidates: candidate i has the choices of job i."""

    def __init__(
        self, service: Service, candidates: Sequence[Candidate], jobs: Sequence[Job], show: Display, *, chat: bool
    ) -> None:
        super().__init__(service, ChatForm() if chat else CompletionForm(), "", jobs, show)
        self.names = [entry.model or job.base for entry, job in zip(candidates, jobs, strict=True)]
        self.labels = [entry.label or name for entry, name in zip(candidates, self.names, strict=True)]

    def _candidate_of(self, number: int) -> int:
        return number // self.jobs[0].request.n

    def index(self, number: int) -> int:
        return number % self.jobs[0].request.n

    def chunk_head(self, number: int) -> dict[str, Any]:
        candidate = self._candidate_of(number)
        own = {"candidate": candidate, "label": self.labels[candidate], "model": self.names[candidate]}
        return {"id": self.id, "object": "comparison.chunk", "created": self.created} | own

    def last_chunk(self) -> dict[str, Any]:
        return self.chunk_head(0) | {"candidate": None, "label": None, "choices": [], "usage": self.usage()}

    async def whole(self) -> dict[str, Any]:
        choices = await self.collect()
        n = self.jobs[0].request.n
        grouped = [choices[i * n : (i + 1) * n] for i in range(len(self.jobs))]
        candidates = [self._entry(i, own) for i, own in enumerate(grouped)]
        return {"id": self.id, "object": "comparison", "created": self.created, "candidates": candidates}

    def _entry(self, index: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
        job = self.jobs[index]
        own = self.choices[index * job.request.n : (index + 1) * job.request.n]
        used = usage(len(job.prompt_ids), sum(choice.num_tokens for choice in own), self.run.cached_of(index))
        head = {"label": self.labels[index], "model": self.names[index], "choices": choices, "usage": used}
        return head | {"motet": extension([job])}
