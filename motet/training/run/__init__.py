"""Runs: a recipe becomes a trained, servable folder."""
