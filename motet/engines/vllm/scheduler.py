"""Linked requests in lockstep: the contexts of one choice advance together or not at all.

A choice whose streams read different contexts is one vLLM request per context. In a step in which not all of them
could compute their next token (one is still reading its prompt, waits for memory, was preempted), the tokens of the
others are taken back: they compute the same position again in a later step. vLLM's first runner takes such
corrections since it makes them itself after a failed transfer of keys and values. The second takes none: there the
workers decide (`slot_sampler`), and this follows.

With pipeline stages several steps are under way at once. A request whose token was taken back then waits until no
context of its choice is under way: asked again at once, the contexts could pass each other in alternate steps for ever.

A context that runs keeps its memory until its partners run. They go before whoever else waits: a long request at the
head of the queue could need that memory, and would keep the partners behind it waiting for ever.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from motet.engines.vllm.internals import touch
from motet.engines.vllm.wire import KEY

_Scheduler: Any = touch("Scheduler")


class LinkedScheduler(_Scheduler):
    """Named in vLLM's `scheduler_cls`; without linked requests it is vLLM's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _Scheduler.__init__(self, *args, **kwargs)
        self._held: dict[str, Any] = {}  # by name: requests whose last token was taken back

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self.waiting:
            self._call_partners()
        return _Scheduler.schedule(self, *args, **kwargs)

    def _call_partners(self) -> None:
        """Waiting contexts of choices that run in part go to the head of the queue."""
        running = Counter((link["group"], link["size"]) for link in map(_link_of, self.running) if link is not None)
        apart = {group for (group, size), count in running.items() if count < size}
        if apart:
            partners = [request for request in self.waiting if (_link_of(request) or {}).get("group") in apart]
            self.waiting.remove_requests(partners)
            for request in reversed(partners):
                self.waiting.prepend_request(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        groups: dict[str, list[Any]] = {}
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(name)
            link = None if request is None or request.is_finished() else _link_of(request)
            if link is not None:
                groups.setdefault(link["group"], []).append(request)
        for members in groups.values():
            if self.use_v2_model_runner:
                _follow(members, model_runner_output)
            else:
                self._held |= _taken_back(members, model_runner_output)
        outputs = _Scheduler.update_from_output(self, scheduler_output, model_runner_output)
        if self._held:
            self._release()
        return outputs

    def _release(self) -> None:
        """Held requests of which no partner is under way compute their last position again."""
        links = [_link_of(request) for request in self.requests.values() if request.num_in_flight_tokens > 0]
        under_way = {link["group"] for link in links if link is not None}
        for name, request in list(self._held.items()):
            link = _link_of(request)
            if link is None or link["group"] not in under_way:
                del self._held[name]
                # a preempted one starts again from its first position; padding was computed beyond the last
                request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Linked requests get no drafts: their contexts would not be equally far."""
        _Scheduler.update_draft_token_ids(self, draft_token_ids)
        for name in draft_token_ids.req_ids:
            request = self.requests.get(name)
            if request is not None and _link_of(request) is not None:
                request.spec_token_ids = []


def _link_of(request: Any) -> dict[str, Any] | None:
    """Never raises: what nobody has checked before must not end the engine."""
    extra: dict[str, Any] = getattr(request.sampling_params, "extra_args", None) or {}
    spec = _entries(extra.get(KEY))
    link = _entries(spec.get("link"))
    return link if {"group", "size"} <= link.keys() else None


def _entries(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _follow(members: list[Any], output: Any) -> None:
    """Whom the second runner gave no token computes its last one again, unless it is still reading its prompt.

    No decision of our own: it could differ, when a member was aborted while the step ran, and the runner would then
    be one position ahead of the memory that it was given.
    """
    for request in members:
        if not output.sampled_token_ids[output.req_id_to_index[request.request_id]]:
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)


def _taken_back(members: list[Any], output: Any) -> dict[str, Any]:
    """Takes the tokens of one group's members back, unless all have one at the same place; → whose, by name.

    vLLM pads a new request of one token with guesses: one that came true by chance is not kept, the others have none.
    """
    drawn = [request for request in members if output.sampled_token_ids[output.req_id_to_index[request.request_id]]]
    link = _link_of(members[0])
    assert link is not None
    if len(drawn) == link["size"] and len({request.num_output_tokens for request in drawn}) == 1:
        for request in drawn:
            del output.sampled_token_ids[output.req_id_to_index[request.request_id]][1:]
        return {}
    for request in drawn:
        output.sampled_token_ids[output.req_id_to_index[request.request_id]] = []
    return {request.request_id: request for request in drawn}
