"""From datasets as they are published to nnU-Net's raw format, one dataset per centre."""
