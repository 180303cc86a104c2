"""How a run starts, goes on, and belongs to a sweep."""
