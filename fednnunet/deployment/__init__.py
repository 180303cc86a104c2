"""A federation across machines: keys, the server's machine, a node's machine."""
