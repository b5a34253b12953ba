"""Pointwise information of rows under an expert and its untuned partner.

    I(x → y) = log p_expert(y | x) − log p_untuned(y | x)        in nats, over the whole answer

the pointwise V-information of Ethayarajh et al., "Understanding Dataset Difficulty with V-Usable Information" (2022),
with the untuned model in the place of the one that sees no input: rows far above 0 carry what makes the expert one,
rows near or below 0 are noise, or known to the untuned model anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from motet.training.data.curation.verdict import Verdict
from motet.training.data.files import RecordSource


def filter_by_information(
    sources: Sequence[RecordSource], expert: NDArray[np.float64], untuned: NDArray[np.float64], threshold: float
) -> list[Verdict]:
    """Removes rows whose information is below the threshold (nats); log-probabilities (n,) of whole answers."""
    return [
        Verdict(source, "removed", f"information below {threshold:g} nats", float(score))
        for source, score in zip(sources, expert - untuned, strict=True)
        if score < threshold
    ]
