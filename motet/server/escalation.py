"""What a cascade per request cannot be asked: two models may answer, and neither is asked for what the other says."""

from __future__ import annotations

from motet.composers.plan import Plan
from motet.server.http.errors import ApiError, invalid
from motet.server.query import Query, ScoreQuery


def sides_of(query: Query | ScoreQuery, plan: Plan) -> tuple[Plan, Plan]:
    """The plan that answers first and the one that answers anew.

    Args:
        plan: of an `EscalationRule`.

    Raises:
        ApiError: 400, a text is to be scored, or there is no answer that could be judged.
    """
    assert plan.sides is not None
    first, anew = plan.sides
    small, base = (repr(side.streams[0].model) for side in (first, anew))
    instead = f"take per 'token', or ask {small} or {base} alone"
    if isinstance(query, ScoreQuery):
        raise _refusal(f"scores nothing: {instead}.", "composition")
    if query.score_prompt:
        param = "echo" if query.display.prompt_logprobs is None else "prompt_logprobs"
        raise _refusal(f"scores no prompt: leave {param!r} out, {instead}.", param)
    if query.max_tokens == 0:
        raise _refusal(f"judges an answer of one token at least: raise 'max_tokens', {instead}.", "max_tokens")
    return first, anew


def _refusal(said: str, param: str) -> ApiError:
    return invalid(f"A cascade per request answers by either model, and {said}", param, "unsupported_composition")
