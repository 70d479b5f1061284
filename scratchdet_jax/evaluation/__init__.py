"""Evaluation: VOC and COCO average precision, and the evaluation loop over a split."""
