"""Metrics, prediction of held-out cases, and their pictures."""
