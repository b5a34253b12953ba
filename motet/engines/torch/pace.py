"""Whether guessing pays: the price of a round against what it brings, so that no choice falls behind.

What a guess brings is compared with a token's price in a step in which all its choices decode, those that read their
prompts, too: prompts must be read with guesses as without them, and guesses beside them keep their readers waiting.

A choice has a *credit*: by how many seconds it is ahead of what it would have been without guesses, plus a small share
of its time (`MARGIN`), its prompt's included. A round is begun, and prolonged by one more guess, only while its price
leaves every choice of the step a credit even if all guesses are wrong. So none becomes slower than by that share; what
is not told from nothing (`TRIFLE`) is not asked for.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from motet.engines.drafts import MOST_GUESSES
from motet.engines.torch.choice import Choice
from motet.engines.torch.drafting import Drafting
from motet.engines.torch.model import Member
from motet.engines.torch.prices import Prices
from motet.engines.torch.records import Record, Records
from motet.engines.torch.work import Work

MARGIN = 0.04  # of a choice's time that wrong guesses may cost it
TRIFLE = 0.01  # of a step's time: less is not told from nothing
LOOK_EVERY = 8  # steps between two judgements of which draft pays
RETRY_AFTER = 32  # such judgements after which a draft that did not pay is tried again: texts change
BELIEVED = 0.8  # the share of a stream's guesses that is thought right before any is seen: it is tried, and found out
BELIEVED_TEXT = 0.3  # the same of the text's own guesses
MEMORY = 0.9  # of a choice's speed, per step
Draft = int | str  # the number of a stream, or NGRAM


@dataclass(slots=True, eq=False)
class Ledger:
    """What guessing has brought one choice: `credit` in seconds; its `seconds` and `tokens` of late; the draft that is
    thought to pay, and the stream that does where the text has nothing to repeat; those that have not been begun since,
    for their price; the records of all drafts."""

    credit: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    draft: Draft | None = None
    stream: int | None = None
    looked: int = 0
    refused: set[Draft] = field(default_factory=set[Draft])
    records: dict[Draft, Record] = field(default_factory=dict[Draft, Record])


class Pace:
    """Prices, records and credits of one engine."""

    def __init__(self) -> None:
        self._records = Records()
        self._overhead = Prices()  # of a step beside its forwards, by its rows
        self._ledgers: WeakKeyDictionary[Choice, Ledger] = WeakKeyDictionary()

    def stake(self, work: Sequence[Work], forward_seconds: float) -> Stake:
        return Stake(self, work, forward_seconds)

    def ledger(self, choice: Choice) -> Ledger:
        if choice not in self._ledgers:
            self._ledgers[choice] = Ledger()
        return self._ledgers[choice]

    def record(self, choice: Choice, draft: Draft) -> Record:
        """What is known of a draft under the choice's composition, at its temperature."""
        ledger = self.ledger(choice)
        if draft not in ledger.records:
            key = (choice.plan, draft, round(choice.sampling.temperature, 1), choice.is_unseeded)
            ledger.records[draft] = self._records.of(key, BELIEVED if isinstance(draft, int) else BELIEVED_TEXT)
        return ledger.records[draft]

    def price(self, tokens: Mapping[Member, int], rows: int) -> float:
        """Seconds of a step by what is known."""
        return sum(member.prices.of(count) for member, count in tokens.items()) + self._overhead.of(rows)

    def observe_overhead(self, rows: int, seconds: float) -> None:
        self._overhead.observe(rows, seconds)

    def best_draft(self, choice: Choice, outlook: Outlook, drafts: Sequence[Draft]) -> Draft | None:
        """The draft with the most tokens per second by what is known, None where none has more than no draft has."""
        ledger = self.ledger(choice)
        if ledger.looked % LOOK_EVERY == 0:
            gains = {draft: self._gain(choice, outlook, draft) for draft in drafts}
            best = max(gains, key=lambda draft: gains[draft])
            ledger.draft = best if gains[best] > 1.0 else None
            streams = [draft for draft in drafts if isinstance(draft, int) and gains[draft] > 1.0]
            ledger.stream = max(streams, key=lambda draft: gains[draft], default=None)
            for draft in drafts:
                taken = draft in (ledger.draft, ledger.stream) and draft not in ledger.refused
                anew = self.record(choice, draft).judged(taken, RETRY_AFTER)
                if anew and isinstance(draft, int):
                    choice.streams[draft].member.forget_draft_prices()
            ledger.refused.clear()
        ledger.looked += 1
        return ledger.draft

    def _gain(self, choice: Choice, outlook: Outlook, draft: Draft) -> float:
        """How many times as many tokens per second the best number of guesses brings, if all choices guess alike."""
        drafter = choice.streams[draft].member if isinstance(draft, int) else None
        acceptance = self.record(choice, draft).acceptance
        best, expected, right = 0.0, 1.0, 1.0
        for guesses in range(1, MOST_GUESSES + 1):
            right *= acceptance
            expected += right
            best = max(best, expected * outlook.decode / max(outlook.round(drafter, guesses), 1e-9))
        return best

    def speed(self, choice: Choice, decode: float) -> float:
        """Tokens per second that a choice comes to of late, at least what it would come to without guesses."""
        ledger = self.ledger(choice)
        return max(ledger.tokens / ledger.seconds if ledger.seconds else 0.0, 1.0 / max(decode, 1e-9))


class Outlook:
    """A step as it is planned, without guesses: its tokens, its rows, and its price, `plain`. Beside it the step in
    which the same choices all decode: its price, `decode`, and that with guesses.

    It is made once per step, since every choice that judges its drafts asks for the same prices: with a whole batch of
    them, adding the batch up for each took longer than the forward of a small model.
    """

    def __init__(self, pace: Pace, work: Sequence[Work]) -> None:
        self._pace = pace
        self.work = work
        self.tokens, self.rows = plain_of(work)
        self.plain = pace.price(self.tokens, self.rows)
        self.decoding = [item.choice for item in work if item.choice.is_decoding]
        self._tokens, self._rows = self.tokens.copy(), self.rows
        for item in work:
            if not item.choice.is_decoding:
                self._rows += 1 - item.positions
                for stream, count in zip(item.choice.streams, item.counts, strict=True):
                    self._tokens[stream.member] += 1 - count
        self.decode = pace.price(self._tokens, self._rows)
        members = [[stream.member for stream in item.choice.streams] for item in work]
        self._streams = Counter(member for own in members for member in own)
        self._drafting = Counter(member for own in members for member in set(own))
        self._rounds: dict[tuple[Member | None, int], float] = {}

    def round(self, drafter: Member | None, guesses: int) -> float:
        """Seconds of the step in which all decode and guess, with `drafter` or from the text."""
        key = (drafter, guesses)
        if key not in self._rounds:
            self._rounds[key] = self._priced(drafter, guesses)
        return self._rounds[key]

    def _priced(self, drafter: Member | None, guesses: int) -> float:
        tokens = {member: count + guesses * self._streams[member] for member, count in self._tokens.items()}
        rows = self._rows + guesses * len(self.work)
        if drafter is None:
            return self._pace.price(tokens, rows)
        drafting = self._drafting[drafter]
        if drafter.draft_prices is None:  # its rows are computed while it guesses
            tokens[drafter] -= drafting * (guesses + 1)
        return self._pace.price(tokens, rows + drafting * guesses) + (guesses + 1) * drafter.guess_prices.of(drafting)


class Stake:
    """What one step risks.

    Args:
        work: the step without guesses.
        forward_seconds: of all members so far.
    """

    def __init__(self, pace: Pace, work: Sequence[Work], forward_seconds: float) -> None:
        self._pace = pace
        self._forwards_before = forward_seconds
        self._began = time.perf_counter()
        self.outlook = outlook = Outlook(pace, work)
        self._tokens, self._rows, self._plain = outlook.tokens.copy(), outlook.rows, outlook.plain
        self._budget = min(pace.ledger(item.choice).credit for item in work)
        self._spent = 0.0
        self._rate = sum(pace.speed(item.choice, outlook.decode) for item in work)

    def begin(self, items: Sequence[Drafting]) -> bool:
        """Whether the step can afford that these choices' streams run before the others, to guess. Where that costs
        something of itself (the same member then runs again for others, or computes nothing that the step needs), it
        must be able to afford a first guess as well, and as many as it takes must be worth it all."""
        drafts, before = _by_member(items), (self._tokens.copy(), self._rows)
        for member, count in drafts.items():
            self._tokens[member] -= 0 if member.draft_prices else count
        self._rows += sum(drafts.values())
        self._spent = self._pace.price(self._tokens, self._rows) + _forwards(drafts) - self._plain
        begun = self._spent <= TRIFLE * self._plain or self._pays(items)
        for item in items:
            refused = self._pace.ledger(item.choice).refused
            (refused.discard if begun else refused.add)(item.draft)
        if not begun:
            (self._tokens, self._rows), self._spent = before, 0.0
        return begun

    def _pays(self, items: Sequence[Drafting]) -> bool:
        """Whether some number of guesses of each choice is worth its price and what is spent already."""
        price = self._added(items)
        if self._spent + price > self._budget:
            return False
        chances = [(self._pace.record(item.choice, item.draft).acceptance, item.most) for item in items]
        expected = 0.0
        for guesses in range(1, max(item.most for item in items) + 1):
            expected += sum(chance**guesses for chance, most in chances if guesses <= most)
            if expected >= (self._spent + guesses * price) * self._rate:
                return True
        return False

    def worth(self, items: Sequence[Drafting]) -> list[Drafting]:
        """Those whose pending guesses are worth their price, which is then spent: the expected tokens must be more than
        all choices come to in that time."""
        reach = {item: item.reach * self._chance(item) for item in items}
        left = sorted(items, key=lambda item: -reach[item])
        while left:
            price = self._added(left)
            if self._spent + price <= self._budget and sum(reach[item] for item in left) >= price * self._rate:
                (self._tokens, self._rows), self._spent = self._with(left), self._spent + price
                for item in left:
                    item.reach = reach[item]
                return left
            left.pop()
        return []

    def _added(self, items: Sequence[Drafting]) -> float:
        """Seconds that one more guess of these choices adds to the step."""
        price = self._pace.price(*self._with(items)) - self._pace.price(self._tokens, self._rows)
        return price + _forwards(_by_member([item for item in items if item.drafts_behind(len(item.guesses) + 1)]))

    def _chance(self, item: Drafting) -> float:
        """That the pending guess is right."""
        return self._pace.record(item.choice, item.draft).probability(item.sureness[-1])

    def _with(self, items: Sequence[Drafting]) -> tuple[defaultdict[Member, int], int]:
        """Tokens and rows of the step with one more guess of these choices; a stream that drafts also draws."""
        tokens, rows = self._tokens.copy(), self._rows
        for item in items:
            rows += 1 if item.round.stream is None else 2
            for k, stream in enumerate(item.choice.streams):
                tokens[stream.member] += not item.round.has_rows_of(k)
        return tokens, rows

    def settle(self, items: Sequence[Drafting], forward_seconds: float) -> None:
        """Books the step: every choice's credit, and what became of the guesses."""
        seconds = time.perf_counter() - self._began
        if self.outlook.decoding:
            self._pace.observe_overhead(self._rows, seconds - (forward_seconds - self._forwards_before))
        gained = dict.fromkeys(self.outlook.decoding, 1)
        gained |= {item.choice: max(len(item.choice.shared) - item.start, 1) for item in items}
        for item in self.outlook.work:
            ledger, tokens = self._pace.ledger(item.choice), gained.get(item.choice, 1)
            without = self._plain * tokens if items else seconds
            ledger.credit += (1.0 + MARGIN) * without - seconds
            if item.choice in gained:
                ledger.seconds = MEMORY * ledger.seconds + seconds
                ledger.tokens = MEMORY * ledger.tokens + tokens
        for item in items:
            record = self._pace.record(item.choice, item.draft)
            for right, sureness in zip(item.outcome(), item.sureness, strict=False):
                record.add(sureness, right)


def plain_of(work: Sequence[Work]) -> tuple[defaultdict[Member, int], int]:
    """Tokens of each member and rows of a step as it is planned."""
    tokens: defaultdict[Member, int] = defaultdict(int)
    for item in work:
        for stream, count in zip(item.choice.streams, item.counts, strict=True):
            tokens[stream.member] += count
    return tokens, sum(item.positions for item in work)


def _by_member(items: Sequence[Drafting]) -> dict[Member, int]:
    """How many of the choices' streams draft with each member."""
    counts: dict[Member, int] = defaultdict(int)
    for item in items:
        if item.round.stream is not None:
            counts[item.stream.member] += 1
    return counts


def _forwards(drafts: Mapping[Member, int]) -> float:
    return sum(member.guess_prices.of(count) for member, count in drafts.items())
