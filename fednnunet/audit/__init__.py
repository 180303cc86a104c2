"""The audit log: what has left a node, written there and read by its data-protection officer."""
