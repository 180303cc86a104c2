"""What crosses a process border: messages, named arrays, and the channel that carries them."""
