"""Detects objects in a photo with an exported file, by JAX and NumPy alone.

python exported_example.py model.jaxexport photo.jpg

Needs jax, flatbuffers (which jax.export reads its programs with) and, to open the photo, pillow.
"""

import json
import sys

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps

file = np.load(sys.argv[1], allow_pickle=False)
about = json.loads(file["metadata.json"])
weights = jax.device_put({name: file[name] for name in about["weights"]})
detect = jax.jit(jax.export.deserialize(bytearray(file["function.bin"])).call)

photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
pixels = [photo.height, photo.width] * 2
photo.thumbnail(about["canvas"][::-1])  # if it is larger; (width, height)
images = np.zeros((1, *about["canvas"], 3), np.uint8)
images[0, : photo.height, : photo.width] = photo
found = jax.device_get(detect(weights, images, np.int32([[photo.height, photo.width]])))

for i in np.flatnonzero(found["scores"][0] >= 0.5):
    name = about["class_names"][found["labels"][0, i] - 1]
    print(name, found["scores"][0, i], *(found["boxes"][0, i] * pixels))  # ymin, xmin, ymax, xmax
