"""Reader of segmentation datasets in the Brain Imaging Data Structure (BIDS)."""
