"""Losses as plain functions of logits and labels, one objective per file."""
