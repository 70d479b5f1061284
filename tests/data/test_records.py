import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from scratchdet_jax.data.builders.writing import write_dataset
from scratchdet_jax.data.records import open_source
from scratchdet_jax.errors import UserError

PICTURE = b"\xff\xd8 never decoded here \xff\xd9"


class Handmade(tfds.core.GeneratorBasedBuilder):
    """A data set of given features and examples."""

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
    write_dataset(lambda: Handmade(data_dir, name, features, splits, version))


def voc_features(names=("cat", "dog")):
    """As tensorflow_datasets/object_detection/voc.py declares them."""
    label = tfds.features.ClassLabel(names=names)
    return tfds.features.FeaturesDict({
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence({
            "label": label,
            "bbox": tfds.features.BBoxFeature(),
            "pose": tfds.features.ClassLabel(names=("frontal", "unspecified")),
            "is_truncated": np.bool_,
            "is_difficult": np.bool_,
        }),
        "labels": tfds.features.Sequence(label),
        "labels_no_difficult": tfds.features.Sequence(label),
    })  # fmt: skip


def voc_example(filename, *objects):
    """``objects``: (label, box, difficult)."""
    return {
        "image": PICTURE + filename.encode(),
        "image/filename": filename,
        "objects": [
            {"label": n, "bbox": tfds.features.BBox(*box), "pose": "unspecified",
             "is_truncated": False, "is_difficult": difficult}
            for n, box, difficult in objects
        ],
        "labels": [n for n, _, _ in objects],
        "labels_no_difficult": [n for n, _, difficult in objects if not difficult],
    }  # fmt: skip


BOX, OTHER = (0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 1.0, 1.0)
TRAIN = [
    voc_example("000001.jpg", ("cat", BOX, False), ("dog", OTHER, True)),
    voc_example("000002.jpg"),
    voc_example("000003.jpg", ("dog", BOX, False)),
]
VALIDATION = [voc_example("2008_000004.jpg", ("dog", BOX, True))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make(path, "2007", voc_features(), {"train": TRAIN, "validation": VALIDATION})
    return path


def by_id(source):
    return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}


def test_tfds_vocs_own_layout_is_read(data_dir):
    source = open_source("handmade/2007:train", data_dir)
    assert source.class_names == ("cat", "dog")
    assert source.spec == "handmade/2007:train"
    found = by_id(source)
    assert sorted(found) == ["000001", "000002", "000003"]
    first = found["000001"]
    assert first["image"] == PICTURE + b"000001.jpg"
    assert first["filename"] == "000001.jpg"
    np.testing.assert_allclose(first["boxes"], [BOX, OTHER])
    assert first["boxes"].dtype == np.float32
    assert first["labels"].dtype == np.int32
    assert first["ignore"].dtype == bool
    np.testing.assert_array_equal(first["labels"], [1, 2])
    np.testing.assert_array_equal(first["ignore"], [False, True])
    empty = found["000002"]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == empty["ignore"].shape == (0,)
    assert [source.image_id(i) for i in range(3)] == list(found)
    assert "tensorflow" not in sys.modules


def test_cocos_layout_is_read(tmp_path):
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "panoptic_image": tfds.features.Image(encoding_format="png"),
        "objects": tfds.features.Sequence({
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "id": np.int64,
            "is_crowd": np.bool_,
            "label": tfds.features.ClassLabel(num_classes=80),
        }),
    })  # fmt: skip
    example = {
        "image": PICTURE, "image/filename": "000000000139.jpg", "image/id": 139,
        "panoptic_image": b"not looked at",
        "objects": [
            {"area": 5, "bbox": tfds.features.BBox(*BOX), "id": i, "is_crowd": i == 1, "label": 79}
            for i in range(2)
        ],
    }  # fmt: skip
    make(tmp_path, "2017", features, {"validation": [example]})
    (found,) = by_id(open_source("handmade/2017:validation", tmp_path)).values()
    assert found["image_id"] == "139"
    np.testing.assert_array_equal(found["labels"], [80, 80])
    np.testing.assert_array_equal(found["ignore"], [False, True])


def test_flags_and_names_may_be_absent(tmp_path):
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "objects": tfds.features.Sequence({
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["a"]),
        }),
    })  # fmt: skip
    boxes = [{"bbox": tfds.features.BBox(*BOX), "label": 0}]
    make(tmp_path, "bare", features, {"train": [{"image": PICTURE, "objects": boxes}] * 2})
    source = open_source("handmade/bare:train", tmp_path)
    assert not source[0]["ignore"].any()
    assert source[0]["image_id"] != source[1]["image_id"]
    assert "handmade/bare" in source[1]["filename"]


def test_degenerate_boxes_are_clipped_or_left_out_with_one_warning(tmp_path):
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence({
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=["a"]),
        }),
    })  # fmt: skip
    boxes = [
        (-0.5, 0.1, 0.5, 1.5), (0.2, 0.2, 0.2, 0.5), (0.5, 0.1, 0.4, 0.2),
        (1.1, 0.1, 1.2, 0.2), (np.nan, 0, 1, 1), BOX,
    ]  # fmt: skip
    example = {
        "image": PICTURE, "image/filename": "odd.jpg",
        "objects": [{"bbox": np.float32(b), "label": 0} for b in boxes],
    }  # fmt: skip
    make(tmp_path, "odd", features, {"train": [example] * 2})
    source = open_source("handmade/odd:train", tmp_path)
    with pytest.warns(UserWarning, match=r"odd\.jpg of handmade/odd:train: 4 of its boxes") as seen:
        for i in range(2):
            np.testing.assert_allclose(source[i]["boxes"], [(0, 0.1, 0.5, 1), BOX])
            assert len(source[i]["labels"]) == len(source[i]["ignore"]) == 2
    assert len(seen) == 1


def test_unions_join_in_order(data_dir):
    spec = "handmade/2007:validation, handmade/2007:train[:2],handmade/2007:train[2:]"
    source = open_source(spec, data_dir)
    assert len(source) == 4
    alone = [open_source(f"handmade/2007:{s}", data_dir) for s in ("validation", "train")]
    expected = [part.image_id(i) for part in alone for i in range(len(part))]
    assert [source.image_id(i) for i in range(4)] == expected
    assert len(open_source("handmade/2007:train+validation", data_dir)) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError):
            source[index]


def test_unions_need_the_same_classes(data_dir, tmp_path):
    make(data_dir, "other", voc_features(("dog", "cat")), {"train": TRAIN})
    with pytest.raises(UserError, match=r"handmade/2007:train and handmade/other:train .*differ"):
        open_source("handmade/2007:train,handmade/other:train", data_dir)


def test_the_highest_version_is_read(tmp_path):
    for version, rows in (("9.0.0", TRAIN), ("10.0.0", VALIDATION), ("2.0.0", TRAIN)):
        make(tmp_path, "many", voc_features(), {"train": rows}, version)
    assert len(open_source("handmade/many:train", tmp_path)) == 1


def test_pickled_and_read_from_threads(data_dir):
    source = pickle.loads(pickle.dumps(open_source("handmade/2007:train", data_dir)))
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda i: source[i % 3]["image_id"], range(60)))
    assert ids == [source.image_id(i % 3) for i in range(60)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("handmade/2007:test", ["no split 'test'", "train (3 images), validation (1 images)"]),
        ("handmade/2007:train[", ["no split 'train['", "train (3 images)"]),
        ("handmade/2007:train[:9]", ["[:9] incompatible with 3 examples"]),
        ("handmade/2007:train[:0]", ["handmade/2007:train[:0] holds no image"]),
        ("handmade/2007:train[2:1]", ["ends before it starts"]),
        ("handmade:train", ["several configs", "handmade/2007"]),
        ("handmade/2007", ["is not NAME[/CONFIG]:SPLIT"]),
        ("handmade/2007:train,", ["'' in the data set"]),
        ("../2007:train", ["is not NAME[/CONFIG]:SPLIT"]),
        (
            "voc/2012:train",
            ["`tfds build voc/2012 --file_format=array_record --data_dir=",
             "prepare voc --folder=VOCdevkit/VOC2012 --name=voc2012 --data_dir=",
             "use voc_folder/voc2012"],
        ),
        ("voc_folder/cells:train", ["prepare voc --folder=FOLDER --name=cells", "handmade/2007"]),
        ("coco/2017:train", ["`tfds build coco/2017 --file_format=array_record"]),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(spec, words, data_dir):
    with pytest.raises(UserError) as error:
        open_source(spec, data_dir)
    for word in words:
        assert word in str(error.value)


def test_tfrecord_files_are_refused_with_the_command_that_helps(tmp_path):
    make(tmp_path, "old", voc_features(), {"train": TRAIN})
    directory = tmp_path / "handmade" / "old" / "5.0.0"
    for path in directory.glob("*array_record*"):
        path.rename(directory / path.name.replace("array_record", "tfrecord"))
    info = directory / "dataset_info.json"
    text = info.read_text()
    assert '"array_record"' in text
    info.write_text(
        text.replace('"array_record"', '"tfrecord"').replace("ARRAY_RECORD", "tfrecord")
    )
    with pytest.raises(UserError) as error:
        open_source("handmade/old:train", tmp_path)
    assert "stored as tfrecord" in str(error.value)
    assert "`tfds build handmade/old --file_format=array_record" in str(error.value)
    assert "--overwrite" in str(error.value)


def test_other_kinds_of_data_sets_are_refused(tmp_path):
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=3),
    })  # fmt: skip
    make(tmp_path, "mnist", features, {"train": [{"image": PICTURE, "label": 1}]})
    with pytest.raises(UserError, match="objects with bbox and label, and has image, label"):
        open_source("handmade/mnist:train", tmp_path)


def test_a_damaged_data_set_is_named(tmp_path):
    make(tmp_path, "torn", voc_features(), {"train": TRAIN})
    info = tmp_path / "handmade" / "torn" / "5.0.0" / "dataset_info.json"
    info.write_text(json.dumps({"name": 3})[:-2])
    with pytest.raises(UserError, match=r"torn/5\.0\.0 cannot be read"):
        open_source("handmade/torn:train", tmp_path)
