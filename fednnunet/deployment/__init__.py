"""A federation across machines: keys and certificates."""
