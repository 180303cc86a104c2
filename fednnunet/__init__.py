"""FednnU-Net: nnU-Net trained across hospitals without moving an image."""

__version__ = "0.1.0"
