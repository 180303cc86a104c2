"""Convert published datasets to nnU-Net's raw format, one dataset per centre."""
