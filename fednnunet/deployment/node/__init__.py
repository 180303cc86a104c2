"""A node's machine in a federation of several machines."""
