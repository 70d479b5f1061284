"""Creates folders in VOC layout, file by file."""

import struct

import cv2
import numpy as np

from scratchdet_jax.data.records import DetectionSource

HEIGHT, WIDTH = 40, 60


def jpeg(height=HEIGHT, width=WIDTH, seed=0):
    image = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def obj(name="cell", box=(10, 5, 30, 25), difficult="0", extra=""):
    """One <object>; `box` is (xmin, ymin, xmax, ymax)."""
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{extra}"
        f"<bndbox>{corners}</bndbox></object>"
    )


def annotation(*objects, width=WIDTH, height=HEIGHT):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>wrong.jpg</filename>{size}{''.join(objects)}</annotation>"


class Folder:
    """A folder in VOC layout, created file by file."""

    def __init__(self, path):
        self.path = path
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (path / part).mkdir(parents=True)

    def image(self, image_id, data=None, suffix=".jpg"):
        (self.path / "JPEGImages" / f"{image_id}{suffix}").write_bytes(data or jpeg())
        return self

    def note(self, image_id, text):
        (self.path / "Annotations" / f"{image_id}.xml").write_text(text)
        return self

    def both(self, image_id, *objects):
        return self.image(image_id).note(image_id, annotation(*(objects or (obj(),))))

    def link(self, place, data):
        """A link to a file beside the folder."""
        target = self.path.parent / "elsewhere"
        target.write_bytes(data)
        (self.path / place).symlink_to(target)
        return self

    def split(self, name, *lines):
        text = "".join(line + "\n" for line in lines)
        (self.path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
        return self


def with_exif(data, orientation):
    """The JPEG with an EXIF block with an orientation (6 = a quarter turn clockwise)."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + b"\0" * 4
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def examples(tmp_path, split="train"):
    source = DetectionSource(f"voc_folder/mine:{split}", tmp_path / "data")
    return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}
