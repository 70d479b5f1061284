"""Data sets written by TFDS's builders voc and coco are read without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import voc as tfds_voc

from scratchdet_jax.data.coco_classes import IDS
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import UserError
from tests.data.tfds_sets import PICTURE, as_tfrecord, build_coco, build_voc

VOC2007 = {
    "train": {
        "000005": [("chair", (25, 10, 75, 40), False), ("Cat", (0, 0, 100, 50), True)],
        "000007": [],
    },
    "val": {"000009": [("person", (1, 1, 99, 49), False)]},
    "test": {"000001": [("dog", (50, 25, 100, 50), False)]},
}
VOC2012 = {
    "train": {"2008_000008": [("horse", (10, 5, 20, 10), False)]},
    "val": {"2008_000002": [("tvmonitor", (10, 5, 20, 10), True)]},
    "test": {"2008_000001": [], "2008_000004": []},
}


def coco_image(number, height=400, width=500):
    name = f"{number:012d}.jpg"
    return {"id": number, "file_name": name, "height": height, "width": width}


def coco_box(number, image, category, bbox, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": 7.25,
        "iscrowd": crowd,
    }


# A box covering the image, one at the right and lower border, a crowd, and no box.
COCO = {
    "train2017": (
        [coco_image(139), coco_image(9)],
        [coco_box(9, 139, 90, [0, 0, 500, 400]), coco_box(3, 139, 1, [450.5, 380.25, 49.5, 19.75])],
    ),
    "val2017": (
        [coco_image(632), coco_image(581929)],
        [coco_box(17, 581929, 13, [10, 20, 30, 40], crowd=1)],
    ),
    "test2017": ([coco_image(1), coco_image(2)], None),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    build_voc(path, tmp_path_factory.mktemp("voc2007"), "2007", VOC2007)
    build_voc(path, tmp_path_factory.mktemp("voc2012"), "2012", VOC2012)
    build_coco(path, tmp_path_factory.mktemp("coco"), "2017", COCO)
    build_coco(
        path,
        tmp_path_factory.mktemp("coco2014"),
        "2014",
        {
            "train2014": COCO["train2017"],
            "val2014": COCO["val2017"],
            "test2014": COCO["test2017"],
            "test2015": ([coco_image(3)], None),
        },
    )
    return path


def by_id(source):
    return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}


def test_voc(data_dir):
    source = DetectionSource("voc/2007:train", data_dir)
    assert source.class_names == tuple(tfds_voc._VOC_LABELS)
    assert source.category_ids is None
    found = by_id(source)
    assert sorted(found) == ["000005", "000007"]
    first = found["000005"]
    assert first["image"] == PICTURE + b"000005"
    assert (first["filename"], first["orientation"]) == ("000005.jpg", 1)
    np.testing.assert_allclose(first["boxes"], [(0.2, 0.25, 0.8, 0.75), (0, 0, 1, 1)])
    assert [source.class_names[i - 1] for i in first["labels"]] == ["chair", "cat"]
    np.testing.assert_array_equal(first["ignore"], [False, True])
    assert found["000007"]["boxes"].shape == (0, 4)


def test_voc_07_and_12_join(data_dir):
    spec = "voc/2007:train+validation,voc/2012:train+validation"
    source = DetectionSource(spec, data_dir)
    assert sorted(by_id(source)) == ["000005", "000007", "000009", "2008_000002", "2008_000008"]
    # The test split of TFDS's voc/2012 has no annotations: all its detections would be false.
    unlabelled = DetectionSource("voc/2007:test,voc/2012:test", data_dir)
    assert len(unlabelled) == 3
    with pytest.raises(UserError, match=r"test of voc/2012:test has no annotations"):
        unlabelled.require_boxes("config.data.eval")
    DetectionSource("voc/2007:test", data_dir).require_boxes("config.data.eval")


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco(year, data_dir):
    source = DetectionSource(f"coco/{year}:train", data_dir)
    assert source.class_names == tuple(IDS)
    assert source.category_ids == tuple(sorted(IDS.values()))
    assert len(source.category_ids) == 80 and source.category_ids[-1] == 90
    found = by_id(source)
    first = found["139"]
    corner = (380.25 / 400, 450.5 / 500, 1, 1)
    # TFDS orders annotations by id.
    np.testing.assert_allclose(first["boxes"], [corner, (0, 0, 1, 1)], atol=1e-6)
    assert [source.category_ids[i - 1] for i in first["labels"]] == [1, 90]
    assert [source.class_names[i - 1] for i in first["labels"]] == ["person", "toothbrush"]
    assert found["9"]["boxes"].shape == (0, 4)
    held_out = by_id(DetectionSource(f"coco/{year}:validation", data_dir))
    assert sorted(held_out) == ["581929", "632"]
    np.testing.assert_array_equal(held_out["581929"]["ignore"], [True])
    assert source.left_out_line() == ""


@pytest.mark.parametrize(
    ("spec", "split"),
    [
        ("coco/2017:test", "test"),
        ("coco/2014:test2015[:1]", "test2015"),
        ("coco/2017:train,coco/2017:validation+test", "test"),
    ],
)
def test_coco_without_annotations_can_only_be_predicted_on(spec, split, data_dir):
    source = DetectionSource(spec, data_dir)
    assert source[len(source) - 1]["image"].startswith(PICTURE)
    with pytest.raises(UserError) as error:
        source.require_boxes("config.data.eval")
    assert str(error.value).startswith(f"config.data.eval {spec}: the split {split} of ")
    assert "neither trained on nor scored" in str(error.value)


@pytest.mark.parametrize("name", ["voc/2012", "coco/2017"])
def test_tfrecord_is_refused_and_the_commands_that_help_are_named(name, data_dir, tmp_path):
    if name == "voc/2012":
        build_voc(tmp_path / "data", tmp_path / "files", "2012", VOC2012)
    else:
        build_coco(tmp_path / "data", tmp_path / "files", "2017", COCO)
    (directory,) = (tmp_path / "data" / name).iterdir()
    as_tfrecord(directory)
    with pytest.raises(UserError) as error:
        DetectionSource(f"{name}:train", tmp_path / "data")
    for words in (
        f"{name} in {tmp_path / 'data'} is stored as tfrecord",
        f"`tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record`",
        f"`tfds build {name} --file_format=array_record --data_dir={tmp_path / 'data'} "
        "--overwrite`",
        "pip install tensorflow ",
    ):
        assert words in str(error.value)


def decoded(source, index):
    """A record as TFDS decodes it, with encoded images."""
    part, position = source._locate(index)
    features = tfds.builder_from_directory(Path(part.shards[0].filename).parent).info.features
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return features.deserialize_example_np(part.records[position], decoders=decoders)


def test_fields_equal_those_read_by_tfds(data_dir):
    for spec in ("voc/2007:train+validation+test", "coco/2017:train+validation+test"):
        source = DetectionSource(spec, data_dir)
        for i in range(len(source)):
            example, record = source[i], decoded(source, i)
            assert example["image"] == record["image"]
            assert example["filename"] == record["image/filename"].decode()
            objects = record["objects"]
            # TFDS loses the shape if there is no object.
            boxes = np.reshape(objects["bbox"], (-1, 4))
            np.testing.assert_array_equal(example["boxes"], boxes)
            np.testing.assert_array_equal(example["labels"], np.asarray(objects["label"], int) + 1)
            flag = objects.get("is_crowd", objects.get("is_difficult"))
            np.testing.assert_array_equal(example["ignore"], flag)


def test_tensorflow_is_never_imported(data_dir):
    script = """
import sys
from scratchdet_jax.data.records import DetectionSource
for spec in ("voc/2007:train", "coco/2017:validation", "coco/2014:test"):
    source = DetectionSource(spec, sys.argv[1])
    [source[i] for i in range(len(source))]
    source.stored_objects(0)
loaded = [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script, str(data_dir)], check=True, timeout=120)
