"""The server's machine in a federation of several machines."""
