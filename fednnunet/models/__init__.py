"""What a trained model is, and what belongs to it when it is handed over."""
