"""Writes small folders in VOC's layout."""

import cv2
import numpy as np


def write_voc(folder, splits):
    """Images of 160 × 120 pixels.

    `splits`: by name, the objects (class, (xmin, ymin, xmax, ymax)) by image.
    """
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    picture = cv2.resize(
        np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120)
    )
    for split, places in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(places) + "\n")
        for image_id, objects in places.items():
            cv2.imwrite(str(folder / f"JPEGImages/{image_id}.jpg"), picture)
            text = "".join(
                f"<object><name>{name.replace('<', '&lt;')}</name><difficult>0</difficult><bndbox>"
                + "".join(
                    f"<{key}>{value}</{key}>"
                    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
                )
                + "</bndbox></object>"
                for name, box in objects
            )
            (folder / f"Annotations/{image_id}.xml").write_text(
                f"<annotation><size><width>160</width><height>120</height></size>{text}"
                "</annotation>"
            )
