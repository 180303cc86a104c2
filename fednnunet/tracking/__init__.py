"""Following a run: terminal, TensorBoard, Weights & Biases."""
