import json
import re
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import bounding_boxes_utils

from scratchdet_jax.data.records import DetectionSource, parse_spec
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.evaluator import Evaluator
from tests.data.tfds_sets import (
    BOX,
    OTHER,
    PICTURE,
    TRAIN,
    VALIDATION,
    make,
    plain_features,
    voc_features,
)

_XYXY = bounding_boxes_utils.BBoxFormat.REL_XYXY


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make(path, "2007", voc_features(), {"train": TRAIN, "validation": VALIDATION})
    return path


def by_id(source):
    return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}


def test_the_layout_of_tfds_voc_is_read(data_dir):
    source = DetectionSource("handmade/2007:train", data_dir)
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


def test_flags_and_names_may_be_absent(tmp_path):
    boxes = [{"bbox": tfds.features.BBox(*BOX), "label": 0}]
    make(tmp_path, "bare", plain_features(), {"train": [{"image": PICTURE, "objects": boxes}] * 2})
    source = DetectionSource("handmade/bare:train", tmp_path)
    assert not source[0]["ignore"].any()
    assert source[0]["orientation"] == 1
    assert source[0]["image_id"] != source[1]["image_id"]
    assert "handmade/bare" in source[1]["filename"]


def test_ids_and_orientations(tmp_path):
    features = plain_features(**{"image/id": np.int64, "image/orientation": np.int32})
    rows = [
        {"image": PICTURE, "objects": [], "image/id": number, "image/orientation": turn}
        for number, turn in ((2**40, 1), (-7, 6), (3, 0), (4, 9))
    ]
    make(tmp_path, "turned", features, {"train": rows})
    source = DetectionSource("handmade/turned:train", tmp_path)
    by_number = {source.image_id(i): i for i in range(4)}
    assert sorted(by_number) == ["-7", str(2**40), "3", "4"]
    assert source[by_number["-7"]]["orientation"] == 6
    assert source[by_number[str(2**40)]]["orientation"] == 1
    for number in "34":
        with pytest.raises(UserError, match=r"image/orientation is [09], not in 1 to 8.*train"):
            source[by_number[number]]


ANY_BOX = tfds.features.Tensor(shape=(4,), dtype=np.float32)
ODD_BOXES = [  # two of them are usable
    ((-0.5, 0.1, 0.5, 1.5), 0),
    ((0.2, 0.2, 0.2, 0.5), 0),
    ((0.5, 0.1, 0.4, 0.2), 1),
    ((1.1, 0.1, 1.2, 0.2), 0),
    ((np.nan, 0, 1, 1), 0),
    (BOX, 1),
    (BOX, -1),
    (OTHER, -1),
]


def odd_example(*objects):
    return {
        "image": PICTURE,
        "image/filename": "odd.jpg",
        "objects": [{"bbox": np.float32(box), "label": label} for box, label in objects],
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    path = tmp_path_factory.mktemp("odd")
    features = plain_features(box=ANY_BOX, **{"image/filename": tfds.features.Text()})
    sound, bad = odd_example((BOX, 0)), odd_example(*ODD_BOXES)
    splits = {"train": [bad, sound, bad], "alone": [odd_example((OTHER, -1))], "sound": [sound]}
    make(path, "odd", features, splits)
    return path


def test_boxes_are_clipped_or_left_out_counted_and_reported(odd):
    source = DetectionSource("handmade/odd:train,handmade/odd:sound", odd)
    assert source.left_out_line() == ""
    with pytest.warns(UserWarning, match=r"odd\.jpg of handmade/odd:train: 6 of its boxes") as seen:
        for _epoch in range(3):
            sizes = []
            for i in range(len(source)):
                example = source[i]
                sizes.append(len(example["labels"]))
                assert len(example["boxes"]) == len(example["ignore"]) == sizes[-1]
                if sizes[-1] == 2:
                    np.testing.assert_allclose(example["boxes"], [(0, 0.1, 0.5, 1), BOX])
                    np.testing.assert_array_equal(example["labels"], [1, 2])
            assert sorted(sizes) == [1, 1, 2, 2]
    assert len(seen) == 1
    assert source.left_out_line() == (
        "left out 12 boxes of 2 images of handmade/odd:train,handmade/odd:sound: 8 without area "
        "inside the image, 4 without label"
    )


def test_left_out_boxes_count_once_for_many_threads(odd):
    source = DetectionSource("handmade/odd:train", odd)
    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("always")
        list(threads.map(lambda i: source[i % 3], range(600)))
    assert source.left_out_line().startswith("left out 12 boxes of 2 images of handmade/odd:train")
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_set_without_usable_boxes_is_refused_where_boxes_are_needed(odd):
    DetectionSource("handmade/odd:alone,handmade/odd:train", odd).require_boxes("config.data.train")
    with pytest.raises(UserError, match=r"config\.data\.train handmade/odd:alone: none of 1 im"):
        DetectionSource("handmade/odd:alone", odd).require_boxes("config.data.train")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_the_unchecked_objects_are_available_too(odd):
    source = DetectionSource("handmade/odd:train", odd)
    counts = [1, 8, 8]
    for i in range(3):
        boxes, labels = source.stored_objects(i)
        counts.remove(len(labels))
        if len(labels) > 1:
            np.testing.assert_array_equal(boxes, np.float32([box for box, _ in ODD_BOXES]))
            assert list(labels) == [label + 1 for _, label in ODD_BOXES]
    assert not counts


def test_unions_join_in_order(data_dir):
    spec = "handmade/2007:validation, handmade/2007:train[:2],handmade/2007:train[2:]"
    source = DetectionSource(spec, data_dir)
    assert len(source) == 4
    alone = [DetectionSource(f"handmade/2007:{s}", data_dir) for s in ("validation", "train")]
    expected = [part.image_id(i) for part in alone for i in range(len(part))]
    assert [source.image_id(i) for i in range(4)] == expected
    assert len(DetectionSource("handmade/2007:train+validation", data_dir)) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError):
            source[index]


def test_unions_take_parts_from_their_own_directories(data_dir, tmp_path):
    here, there = tmp_path / "a@b:c d", tmp_path / "there"
    make(here, "2007", voc_features(), {"train": VALIDATION})
    make(there, "2012", voc_features(), {"train": TRAIN})
    spec = f"handmade/2007:train@{here}, handmade/2012:train[:2]@{there} ,handmade/2007:train"
    source = DetectionSource(spec, data_dir)
    assert source.spec == spec
    assert [len(DetectionSource(s, data_dir)) for s in spec.split(",")] == [1, 2, 3]
    assert [source.image_id(i) for i in (0, 3)] == [
        "2008_000004",
        DetectionSource("handmade/2007:train", data_dir).image_id(0),
    ]
    assert (
        source.describe(0)
        == f"record 0 of handmade/2007:train@{here} in {here}/handmade/2007/5.0.0"
    )
    assert len(source) == 6
    with pytest.raises(UserError, match=rf"no data set handmade/2012 in {re.escape(str(here))} "):
        DetectionSource(f"handmade/2007:train,handmade/2012:train@{here}", data_dir)


def test_a_directory_may_start_with_a_tilde(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    assert len(DetectionSource(f"handmade/2007:train@~/{data_dir.name}", "nowhere")) == 3


def test_parse_spec():
    assert parse_spec("voc/2007:train[:10%]+test, a:b@/x@y:z,c:d@gs://bucket/e") == [
        ("voc/2007", "train[:10%]+test", ""),
        ("a", "b", "/x@y:z"),
        ("c", "d", "gs://bucket/e"),
    ]


def coco_folder(data_dir, name, category_ids, names=("cat", "dog")):
    """A set as written by the builder coco_folder, recognised by its directory."""
    features = plain_features(label=tfds.features.ClassLabel(names=names), **{"image/id": np.int64})
    row = {"image": PICTURE, "objects": [{"bbox": tfds.features.BBox(*BOX), "label": 1}]}
    directory = make(data_dir, name, features, {"train": [{**row, "image/id": 5}]})
    if category_ids is not None:
        report = {"category_ids": category_ids}
        (directory / "report.json").write_text(json.dumps(report))
    target = data_dir / "coco_folder" / name / "1.0.0"
    target.parent.mkdir(parents=True)
    directory.rename(target)
    return target


def test_category_ids(tmp_path):
    for name, ids in (("mine", [3, 90]), ("same", [3, 90]), ("other", [1, 2])):
        coco_folder(tmp_path, name, ids)
    assert DetectionSource("coco_folder/mine:train", tmp_path).category_ids == (3, 90)
    joined = DetectionSource("coco_folder/mine:train,coco_folder/same:train", tmp_path)
    assert joined.category_ids == (3, 90)
    # Their image ids clash, which does not matter for training.
    assert joined[0]["image_id"] == joined[1]["image_id"] == "5"
    with pytest.raises(UserError) as error:
        Evaluator(types.SimpleNamespace(config=None), None, joined)
    assert "holds the image 5 twice (record 0 of coco_folder/mine:train in " in str(error.value)
    assert ", record 0 of coco_folder/same:train in " in str(error.value)
    joined = DetectionSource("coco_folder/mine:train,coco_folder/other:train", tmp_path)
    assert joined.category_ids is None


@pytest.mark.parametrize("ids", [None, [3], [3, 3], [3, "x"], 7, [None, 1]])
def test_a_report_without_the_category_ids_is_an_error(ids, tmp_path):
    directory = coco_folder(tmp_path, "mine", ids)
    with pytest.raises(UserError, match=rf"{re.escape(str(directory))} cannot .*report\.json"):
        DetectionSource("coco_folder/mine:train", tmp_path)


def test_unions_need_the_same_classes(data_dir, tmp_path):
    make(data_dir, "other", voc_features(("dog", "cat")), {"train": TRAIN})
    with pytest.raises(UserError, match=r"handmade/2007:train and handmade/other:train .*differ"):
        DetectionSource("handmade/2007:train,handmade/other:train", data_dir)


def test_the_highest_version_is_read(tmp_path):
    for version, rows in (("9.0.0", TRAIN), ("10.0.0", VALIDATION), ("2.0.0", TRAIN)):
        make(tmp_path, "many", voc_features(), {"train": rows}, version)
    assert len(DetectionSource("handmade/many:train", tmp_path)) == 1


def test_read_from_threads(data_dir):
    source = DetectionSource("handmade/2007:train", data_dir)
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda i: source[i % 3]["image_id"], range(60)))
    assert ids == [source.image_id(i % 3) for i in range(60)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("handmade/2007:test", ["no split 'test'", "train (3 images), validation (1 image)"]),
        ("handmade/2007:train[", ["no split 'train['", "train (3 images)"]),
        ("handmade/2007:train[:9]", ["[:9] incompatible with 3 examples"]),
        ("handmade/2007:train[:0]", ["handmade/2007:train[:0] has no images"]),
        ("handmade/2007:train[2:1]", ["ends before it starts"]),
        ("handmade:train", ["has several configs", "handmade/2007"]),
        ("handmade/2007", ["is not NAME[/CONFIG]:SPLIT"]),
        ("handmade/2007:train,", ["'' in the data set"]),
        ("handmade/2007:train+", ["no split 'train+'"]),
        ("../2007:train", ["is not NAME[/CONFIG]:SPLIT"]),
        (
            "voc/2012:train",
            [
                "`tfds build voc/2012 --file_format=array_record --data_dir=",
                "prepare voc --folder=VOCdevkit/VOC2012 --splits=train,val --name=voc2012 ",
                "use voc_folder/voc2012",
            ],
        ),
        ("voc_folder/cells:train", ["prepare voc --folder=FOLDER --name=cells", "handmade/2007"]),
        (
            "coco/2017:train",
            [
                "`tfds build coco/2017 --file_format=array_record --data_dir=",
                "pip install tensorflow ",
                "prepare coco "
                "--split=train:coco/annotations/instances_train2017.json:coco/train2017 "
                "--split=validation:coco/annotations/instances_val2017.json:coco/val2017 "
                "--name=coco2017 --data_dir=",
                "use coco_folder/coco2017",
            ],
        ),
        (
            "coco_folder/fish:train",
            ["prepare coco --split=SPLIT:ANNOTATIONS.json:IMAGE_FOLDER --name=fish --data_dir="],
        ),
        ("handmade/2007:train@", ["is not NAME[/CONFIG]:SPLIT or NAME[/CONFIG]:SPLIT@DIR"]),
        ("handmade/2007:@/x", ["is not NAME[/CONFIG]:SPLIT"]),
        ("handmade/2007:train@/a,b", ["'b' in the data set", "no name may contain one"]),
    ],
)
def test_errors_say_what_to_do(spec, words, data_dir):
    with pytest.raises(UserError) as error:
        DetectionSource(spec, data_dir)
    for word in words:
        assert word in str(error.value)


def test_other_kinds_of_data_sets_are_refused(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
    make(tmp_path, "mnist", features, {"train": [{"image": PICTURE, "label": 1}]})
    with pytest.raises(UserError, match=r"objects/label \(a ClassLabel\), but it has image, label"):
        DetectionSource("handmade/mnist:train", tmp_path)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (plain_features(box=tfds.features.BBoxFeature(bbox_format=_XYXY)), r"objects/bbox .ymin"),
        (plain_features(box=tfds.features.Tensor(shape=(5,), dtype=np.float32)), "/bbox .ymin"),
        (plain_features(label=tfds.features.Scalar(np.int64)), r"objects/label .a ClassLabel"),
        (
            plain_features(label=tfds.features.ClassLabel(num_classes=3)),
            "does not name the 3 classes",
        ),
    ],
)
def test_other_formats_of_boxes_and_labels_are_refused(features, words, tmp_path):
    box = np.zeros(features["objects"].feature["bbox"].shape, np.float32)
    row = {"image": PICTURE, "objects": [{"bbox": box, "label": 0}]}
    make(tmp_path, "form", features, {"train": [row]})
    with pytest.raises(UserError, match=rf"handmade/form.*{words}"):
        DetectionSource("handmade/form:train", tmp_path)
