"""How far a composition moves its base, token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def shift_shares(shifts: Iterable[str]) -> dict[str, float]:
    """Shares of tokens by their rank under the base: unshifted (0), marginal (1, 2), shifted (3 and above): the
    diagnostic of URIAL (Lin et al. 2023, arXiv:2312.01552). Empty without tokens."""
    counts = Counter(shifts)
    total = counts.total()
    return {name: counts[name] / total for name in ("unshifted", "marginal", "shifted")} if total else {}
