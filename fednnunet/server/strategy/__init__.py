"""How the server combines what nodes send: one strategy per file."""
