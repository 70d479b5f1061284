"""Pure functions on arrays, for the device: boxes, anchors, matching, loss, NMS, augmentation."""
