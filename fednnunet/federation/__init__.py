"""What runs at the server, and the relay between server and nodes."""
