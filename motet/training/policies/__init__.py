"""Distributions that objectives read: models, compositions of them, teachers, heads."""
