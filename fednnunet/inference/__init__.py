"""Segment images with a trained model, as ``nnUNetv2_predict`` does: cases in, segmentations out."""
