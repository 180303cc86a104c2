"""Protection of what leaves a node: sums that hide their addends, noise, and its accounting."""
