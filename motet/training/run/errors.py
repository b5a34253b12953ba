"""How runs fail: with everything that is wrong, in words for the user."""

from __future__ import annotations

from motet.settings import SettingsError


class RunError(SettingsError):
    """A run cannot start or go on. `problems`: everything that is wrong, one line each."""
