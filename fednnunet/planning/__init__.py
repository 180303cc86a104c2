"""nnU-Net's plans, and which classes plans may name."""
