"""Aims, and whether they are met: a miss is printed as a miss."""

from __future__ import annotations


def judged(what: str, value: float | None, least: float) -> str:
    """One line about a figure that shall be at least `least`."""
    shown = "undefined" if value is None else f"{value:.3g}"
    met = value is not None and value >= least
    return f"{what}: {shown}, aim ≥ {least:g}: {'met' if met else 'missed'}"
