"""Commands of fednnunet."""
