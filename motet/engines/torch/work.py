"""What one choice does in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from motet.engines.torch.choice import MOST_BEHIND, Choice


@dataclass(frozen=True, slots=True)
class Work:
    """What one choice does in a step: `counts[k]` tokens of stream k, of which the last `positions` yield rows, and
    those before them that its rule judges. A stream that has drafted has its rows already. Where the token is drawn
    from one stream, its `voice`, only that one yields rows."""

    choice: Choice
    counts: tuple[int, ...]
    positions: int
    voice: int | None = None

    @property
    def heard(self) -> Sequence[int]:
        """The streams that are composed."""
        return range(len(self.choice.streams)) if self.voice is None else (self.voice,)

    def positions_of(self, k: int) -> int:
        """Positions of which stream k yields rows."""
        return self.positions if self.voice in (None, k) else 0

    def exits_of(self, k: int) -> tuple[int, ...]:
        """Early layers of which stream k yields rows as well."""
        return self.choice.exit_layers if k == 0 and self.positions else ()

    def drafted(self, k: int) -> list[Tensor]:
        """The rows that stream k has computed while it drafted."""
        own = self.choice.round
        return own.logits if own is not None and own.has_rows_of(k) else []

    def drafted_readings(self, k: int) -> list[Tensor]:
        """What the head of stream k's member says of those rows."""
        own = self.choice.round
        return own.readings if own is not None and own.has_rows_of(k) else []

    @property
    def rows(self) -> int:
        """Distributions of the stream that has the most of them."""
        judged = (stream.judged_rows(count) for stream, count in zip(self.choice.streams, self.counts, strict=True))
        return self.positions * self.choice.rows_per_position + max(judged)


def next_work(choice: Choice) -> Work:
    """The next token of a choice that decodes. Of a drawn stream it is the last of those that the stream has missed;
    others follow when they are far behind, so that no step becomes long."""
    if not choice.by_member:
        return Work(choice, tuple(stream.missing(choice.position) + 1 for stream in choice.streams), 1)
    voice = choice.draw_voice()
    behind = [stream.missing(choice.position) for stream in choice.streams]
    counts = tuple(count + 1 if k == voice or count >= MOST_BEHIND else 0 for k, count in enumerate(behind))
    return Work(choice, counts, 1, voice)
