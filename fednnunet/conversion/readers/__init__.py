"""Readers of published datasets, one per file."""
