"""Each hospital's choice of a model, from runs at the server or from its own disk; what it writes."""
