"""Folders of DICOM series with segmentations (SEG) or contours (RTSTRUCT)."""
