"""How a run starts, is resumed, and belongs to a sweep."""
