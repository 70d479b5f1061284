"""Detects objects in a photo with an exported ONNX file, by onnxruntime and NumPy alone.

python onnx_example.py model.onnx photo.jpg

Needs onnxruntime and, to open the photo, pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map  # JSON, but for texts
names, canvas = json.loads(about["class_names"]), json.loads(about["canvas"])

photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
pixels = [photo.height, photo.width] * 2
photo.thumbnail(canvas[::-1])  # if it is larger; (width, height)
images = np.zeros((1, *canvas, 3), np.uint8)
images[0, : photo.height, : photo.width] = photo
inputs = {"images": images, "sizes": np.int32([[photo.height, photo.width]])}
boxes, scores, labels = session.run(["boxes", "scores", "labels"], inputs)

for i in np.flatnonzero(scores[0] >= 0.5):
    print(names[labels[0, i] - 1], scores[0, i], *(boxes[0, i] * pixels))  # ymin, xmin, ymax, xmax
