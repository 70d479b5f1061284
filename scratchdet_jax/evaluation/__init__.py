"""Evaluation: VOC and COCO average precision, and the loop over a split."""
