"""One document as tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids, which of them are to be predicted, and their loss weights; all of one length."""

    ids: list[int]
    counted: list[bool]
    weights: list[float]
    is_cut: bool = False  # truncated

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> list[int]:
        """The ids that count."""
        return [token for token, counts in zip(self.ids, self.counted, strict=True) if counts]

    def cut(self, length: int) -> Rendered:
        """The first `length` tokens."""
        return Rendered(self.ids[:length], self.counted[:length], self.weights[:length], is_cut=True)

    def weighed(self, factor: float) -> Rendered:
        """With all weights multiplied."""
        return self if factor == 1 else replace(self, weights=[weight * factor for weight in self.weights])

    def after(self, prompt: list[int], weight: float) -> Rendered:
        """The counted tail of this document (one answer, at its end) behind another prompt, of tokens of `weight`."""
        start, width = self.counted.index(True), len(prompt)
        return Rendered(
            prompt + self.ids[start:],
            [False] * width + self.counted[start:],
            [weight] * width + self.weights[start:],
        )
