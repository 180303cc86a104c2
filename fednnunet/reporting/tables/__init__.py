"""Tables of results, and their export."""
