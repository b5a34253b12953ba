"""Evaluation of compositions over the HTTP API: measures, tasks made of them, recipes, sweeps."""
