"""The phases of a federation, in order: register, prepare, train, evaluate."""
