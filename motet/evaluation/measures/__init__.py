"""Measures: pure functions of texts and log-probabilities."""
