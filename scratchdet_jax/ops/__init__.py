"""Pure functions on arrays: boxes, anchors, matching, loss, NMS, augmentation."""
