"""Motet: compose several language models at the logit level, while decoding."""

__version__ = "0.1.0"
