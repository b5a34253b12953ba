"""Speculative composition: one stream of a plan guesses ahead, then all others verify its guesses in one block.

The draft is a voice of the composition: what it computes while it guesses is its term of the composed distribution, so
nothing is computed twice; or it guesses with rougher weights (`draft_weights`), and verifies with the others. A guess
is drawn from the draft alone with the request's parameters, masks and grammar, and with the random number of its
position; what counts is what the composed distribution draws there with the same number (`step.verified`). A wrong
guess costs time and nothing else: the slots are cut back to what was taken.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from motet.engines.drafts import MOST_GUESSES, OFF, Speculation, drafts_of
from motet.engines.torch.choice import Choice, Round
from motet.engines.torch.drafting import Drafting, compute, draw
from motet.engines.torch.model import Member
from motet.engines.torch.pace import Draft, Outlook, Pace, Stake
from motet.engines.torch.scheduler import EngineSettings
from motet.engines.torch.work import Work
from motet.kernels.decode import Kernels

log = logging.getLogger(__name__)


@dataclass(slots=True)
class DraftStats:
    """Rounds with guesses, guesses, right ones, and how many of the right ones stood at each place of their round."""

    rounds: int = 0
    guesses: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=lambda: [0] * MOST_GUESSES)

    def add(self, item: Drafting) -> None:
        right = sum(item.outcome()[: len(item.guesses)])
        self.rounds += bool(item.guesses)
        self.guesses += len(item.guesses)
        self.accepted += right
        for place in range(right):
            self.accepted_at[place] += 1


class Speculator:
    """Guesses before a step, and takes note of what came of it behind it.

    Args:
        members: of the engine.
        settings: what requests that say nothing of speculation get, and whether it must pay.
        max_rows: distributions that one step may compute.
        kernels: of a device.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        settings: EngineSettings,
        max_rows: int,
        kernels: Callable[[torch.device], Kernels],
    ) -> None:
        self.stats = DraftStats()
        self._members = members
        self._settings = settings
        self._max_rows = max_rows
        self._kernels = kernels
        self._pace = Pace()
        self._drafting: list[Drafting] = []
        self._stake: Stake | None = None

    def use(self, members: Mapping[str, Member]) -> None:
        """Other members from the next step on."""
        self._members = members

    def draft(self, work: Sequence[Work], *, may_guess: bool = True) -> Sequence[Work]:
        """The step's work, with guesses to be verified where they pay; without any where it may have none."""
        self._drafting, self._stake = [], None
        wishes = {item: wish for item in work if (wish := self._wish(item.choice)).tokens}
        if not wishes:
            return work
        self._stake = self._pace.stake(work, self._forward_seconds)
        outlook = self._stake.outlook
        decoding = [(entry, wish) for entry, wish in wishes.items() if may_guess and entry.choice.is_decoding]
        found = [item for entry, wish in decoding if (item := self._begun(entry, wish, outlook)) is not None]
        if self._settings.adapts and found:
            found = _affordable(self._stake, found)
        if not found:
            return work
        for item in found:
            item.choice.round = item.round
        self._drafting = found
        self._guess_ahead(self._stake, work)
        for item in self._drafting:
            if item.round.is_rough:
                item.choice.cut_back(item.stream)
        verifying = {item.choice: item.verifying for item in self._drafting}
        return [verifying.get(item.choice, item) for item in work]

    def settle(self) -> bool:
        """Behind the step: what became of the guesses, which then are forgotten. Whether there were any."""
        if self._stake is None:
            return False
        self._stake.settle(self._drafting, self._forward_seconds)
        for item in self._drafting:
            self.stats.add(item)
            item.choice.end_round()
        return any(item.guesses or item.round.is_rough for item in self._drafting)

    @property
    def _forward_seconds(self) -> float:
        return sum(member.forward_seconds for member in self._members.values())

    def _wish(self, choice: Choice) -> Speculation:
        wish = choice.group.request.speculation or self._settings.speculation
        if not wish.tokens or choice.by_member:
            return OFF
        narrow = wish.wide_only and any(stream.member.dtype.itemsize < 4 for stream in choice.streams)
        return OFF if narrow else wish

    def _begun(self, entry: Work, wish: Speculation, outlook: Outlook) -> Drafting | None:
        """A choice that may guess in this step."""
        choice = entry.choice
        most = min(wish.tokens, MOST_GUESSES, choice.room_ahead)
        draft = self._draft_of(choice, wish, outlook) if most > 0 else None
        if draft is None:
            return None
        if isinstance(draft, int):
            return self._with_stream(entry, draft, wish, most)
        ready, run = choice.repeats.guess([*choice.streams[0].prompt, *choice.shared], most)
        if ready:
            return Drafting(entry, Round(None, []), most, len(choice.shared), ready=ready, run=run)
        stream = self._pace.ledger(choice).stream
        return None if stream is None else self._with_stream(entry, stream, wish, most)

    def _with_stream(self, entry: Work, draft: int, wish: Speculation, most: int) -> Drafting:
        choice = entry.choice
        by_ratio = wish.acceptance == "ratio" and choice.is_unseeded
        made = Round(draft, [], is_rough=_is_rough(choice, draft))
        return Drafting(entry, made, most, len(choice.shared), by_ratio=by_ratio)

    def _draft_of(self, choice: Choice, wish: Speculation, outlook: Outlook) -> Draft | None:
        drafts = drafts_of(choice.plan, wish.draft, alone=_is_rough(choice, 0))
        if not drafts:
            return None
        if self._settings.adapts:
            return self._pace.best_draft(choice, outlook, drafts)
        return min(drafts, key=lambda draft: _size(choice, draft))

    def _guess_ahead(self, stake: Stake, work: Sequence[Work]) -> None:
        """Guess by guess, as long as the next one pays."""
        rows = sum(item.positions for item in work)
        self._propose(self._drafting)
        while True:
            active = [item for item in self._drafting if item.may_go_on]
            if self._settings.adapts:
                active = stake.worth(active)
            rows += len(active)
            if not active or rows > self._max_rows:
                return
            for item in active:
                item.take()
            self._propose(active)

    def _propose(self, items: Sequence[Drafting]) -> None:
        """The next guess of every choice."""
        by_member: dict[Member, list[Drafting]] = defaultdict(list)
        for item in items:
            if item.round.stream is None:
                item.propose_ready()
            elif not item.is_over and item.drafts_behind(len(item.guesses)):
                by_member[item.stream.member].append(item)
        for member, own in by_member.items():
            try:
                compute(own)
            except Exception:
                # the step will meet it too, and tell whom it concerns; but not what the draft's weights alone met
                log.exception("model %s failed while it guessed", member.name)
                member.stop_drafting()
                self._drafting = [item for item in self._drafting if item not in own]
                for item in own:
                    item.choice.end_round()
            else:
                self._draw(own)

    def _draw(self, items: Sequence[Drafting]) -> None:
        """What cannot be drawn is not guessed: whether the request is at fault, its step will tell."""
        by_width: dict[int, list[Drafting]] = defaultdict(list)
        for item in items:
            item.pending = None
            if len(item.guesses) < item.most:
                by_width[item.choice.vocab_size].append(item)
        for own in by_width.values():
            try:
                draw(own, self._kernels(own[0].round.logits[-1].device))
            except Exception:
                log.debug("no guess could be drawn", exc_info=True)


def _affordable(stake: Stake, found: list[Drafting]) -> list[Drafting]:
    """Of the choices that may guess, those with which the step begins: what costs most of itself is left out first."""
    own = [item for item in found if not item.round.is_rough]
    text = [item for item in own if item.round.stream is None]
    for items in (found, own if len(own) < len(found) else [], text if len(text) < len(own) else []):
        if items and stake.begin(items):
            return items
    return []


def _is_rough(choice: Choice, draft: int) -> bool:
    """Whether a stream's member guesses with other weights than its own."""
    return choice.streams[draft].member.draft_prices is not None


def _size(choice: Choice, draft: Draft) -> float:
    """Parameters that a draft reads: the text's own guesses are for where no stream can guess."""
    return math.inf if isinstance(draft, str) else choice.streams[draft].member.info.num_parameters
