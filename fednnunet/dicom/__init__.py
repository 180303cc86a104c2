"""DICOM: series of slices as volumes, segmentations (SEG) and contours (RTSTRUCT) on their grids."""
