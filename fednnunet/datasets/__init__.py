"""The nnUNet_raw contract and the data sets that are made to fit it."""
