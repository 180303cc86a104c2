"""nnU-Net training through Lightning, one aggregation per epoch."""
