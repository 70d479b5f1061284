"""Data sets for tests: with given features, and from TFDS's builders voc and coco."""

import json
import types
import xml.etree.ElementTree as ElementTree
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import coco as tfds_coco
from tensorflow_datasets.object_detection import voc as tfds_voc

from scratchdet_jax.data.coco_classes import IDS
from scratchdet_jax.datasets.writing import write_dataset

PICTURE = b"\xff\xd8 never decoded here \xff\xd9"
BOX, OTHER = (0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 1.0, 1.0)


class Handmade(tfds.core.GeneratorBasedBuilder):
    """A data set with given features and examples."""

    VERSION = tfds.core.Version("5.0.0")
    url_infos = None

    def __init__(self, data_dir, name, features, splits, version="5.0.0"):
        self.features, self.examples = features, splits
        type(self).VERSION = tfds.core.Version(version)
        config = tfds.core.BuilderConfig(name=name, version=version)
        super().__init__(data_dir=str(data_dir), config=config)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager):
        return {name: list(enumerate(rows)) for name, rows in self.examples.items()}

    def _generate_examples(self):
        raise NotImplementedError


def make(data_dir, name, features, splits, version="5.0.0"):
    """Writes handmade/<name> and returns its directory."""
    write_dataset(lambda: Handmade(data_dir, name, features, splits, version))
    return data_dir / "handmade" / name / version


def voc_features(names=("cat", "dog")):
    """Features of voc with other classes."""
    label = tfds.features.ClassLabel(names=names)
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "label": label,
                    "bbox": tfds.features.BBoxFeature(),
                    "pose": tfds.features.ClassLabel(names=("frontal", "unspecified")),
                    "is_truncated": np.bool_,
                    "is_difficult": np.bool_,
                }
            ),
            "labels": tfds.features.Sequence(label),
            "labels_no_difficult": tfds.features.Sequence(label),
        }
    )


def voc_example(filename, *objects):
    """`objects`: (label, box, difficult)."""
    return {
        "image": PICTURE + filename.encode(),
        "image/filename": filename,
        "objects": [
            {
                "label": n,
                "bbox": tfds.features.BBox(*box),
                "pose": "unspecified",
                "is_truncated": False,
                "is_difficult": difficult,
            }
            for n, box, difficult in objects
        ],
        "labels": [n for n, _, _ in objects],
        "labels_no_difficult": [n for n, _, difficult in objects if not difficult],
    }


TRAIN = [
    voc_example("000001.jpg", ("cat", BOX, False), ("dog", OTHER, True)),
    voc_example("000002.jpg"),
    voc_example("000003.jpg", ("dog", BOX, False)),
]
VALIDATION = [voc_example("2008_000004.jpg", ("dog", BOX, True))]


def plain_features(box=None, label=None, **more):
    """The required features of a detection data set, and more."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "objects": tfds.features.Sequence(
                {
                    "bbox": box or tfds.features.BBoxFeature(),
                    "label": label or tfds.features.ClassLabel(names=["a", "b"]),
                }
            ),
            **more,
        }
    )


# TFDS's code without checksums of downloads, whose search needs more packages.
class Voc(tfds_voc.Voc, skip_registration=True):
    url_infos = None


class Coco(tfds_coco.Coco, skip_registration=True):
    url_infos = None


# Everything that this code uses from TensorFlow.
_STAND_IN = types.SimpleNamespace(
    int64=np.int64, io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
)


def _build(builder_class, config, data_dir, folder):
    """Runs TFDS's builder; `folder` contains its unpacked downloads."""

    def unpacked(manager, urls):
        return dict.fromkeys(urls, str(folder))

    manager = tfds.download.DownloadManager
    with (
        mock.patch.object(tfds_voc, "tf", _STAND_IN),
        mock.patch.object(tfds_coco, "tf", _STAND_IN),
        mock.patch.object(manager, "download_and_extract", unpacked),
    ):
        write_dataset(lambda: builder_class(config=config, data_dir=str(data_dir)))


def build_voc(data_dir, folder, year, lists):
    """voc/<year>; `lists`: train, val, test → {id: [(class, (xmin, ymin, xmax, ymax), flag)]}.

    The flag means difficult. Images have 100 × 50 pixels. The builder ignores annotations of VOC
    2012's test split.
    """
    root = folder / "VOCdevkit" / f"VOC{year}"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    for name, images in lists.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(images) + "\n")
        for image, objects in images.items():
            (root / "JPEGImages" / f"{image}.jpg").write_bytes(PICTURE + image.encode())
            tree = ElementTree.Element("annotation")
            fields = {"size": {"width": 100, "height": 50}}
            _fill(tree, fields)
            for label, box, difficult in objects:
                corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
                _fill(
                    ElementTree.SubElement(tree, "object"),
                    {
                        "name": label,
                        "pose": "Unspecified",
                        "truncated": 0,
                        "difficult": int(difficult),
                        "bndbox": corners,
                    },
                )
            ElementTree.ElementTree(tree).write(root / "Annotations" / f"{image}.xml")
    _build(Voc, year, data_dir, folder)


def _fill(element, fields):
    for key, value in fields.items():
        child = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)


def build_coco(data_dir, folder, year, splits):
    """coco/<year>; `splits`: train<year> … → (images, annotations) of COCO's JSON.

    Annotations are None for a split without any. Images are where TFDS expects them.
    """
    categories = [{"id": number, "name": name} for name, number in IDS.items()]
    for name, (images, annotations) in splits.items():
        content = {"images": images, "categories": categories}
        kind = "image_info" if annotations is None else "instances"
        if annotations is not None:
            content["annotations"] = annotations
        (folder / name).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(content))
        for image in images:
            (folder / name / image["file_name"]).write_bytes(PICTURE + str(image["id"]).encode())
    _build(Coco, year, data_dir, folder)


def as_tfrecord(directory):
    """Makes a prepared data set look as if it were stored as TFRecord."""
    for path in directory.glob("*array_record*"):
        path.rename(directory / path.name.replace("array_record", "tfrecord"))
    info = directory / "dataset_info.json"
    text = info.read_text()
    assert '"array_record"' in text
    text = text.replace('"array_record"', '"tfrecord"').replace("ARRAY_RECORD", "tfrecord")
    info.write_text(text)
