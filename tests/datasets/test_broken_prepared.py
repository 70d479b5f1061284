"""Damaged prepared data sets: refused with a one-line error, or read correctly."""

import os
import random
import shutil

import numpy as np
import pytest

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder
from scratchdet_jax.errors import UserError
from tests.data.batches import eval_batches
from tests.datasets.broken import make_coco, mutated, one_sentence, time_limit


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An intact prepared data set, and its content."""
    root = make_coco(tmp_path_factory.mktemp("prepared"))
    split = CocoSplit("train", root / "train.json", root / "images")
    prepare_coco_folder([split], root / "data", "mine")
    return root / "data", read_back(root / "data")


def read_back(data_dir):
    source = DetectionSource("coco_folder/mine:train", data_dir)
    batches = list(eval_batches(source, batch_size=3, canvas=(24, 32), max_boxes=9, threads=1))
    keys = ("image", "boxes", "labels", "ignore", "id")
    arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in keys}
    return len(source), source.class_names, source.category_ids, arrays


def check_prepared(data_dir, expected):
    """There is a one-line error, or the examples are the same."""
    try:
        with time_limit():
            count, names, ids, arrays = read_back(data_dir)
    except UserError as error:
        return one_sentence(error, str(data_dir), "coco_folder/mine")
    assert (count, names, ids) == expected[:3]
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[3][key])
    return None


@pytest.fixture
def spoilt(prepared, tmp_path):
    """A copy of the prepared data set: (data_dir, directory, expected content)."""
    data_dir = tmp_path / "data"
    shutil.copytree(prepared[0], data_dir)
    return data_dir, data_dir / "coco_folder" / "mine" / "1.0.0", prepared[1]


def shard_of(directory):
    (path,) = directory.glob("*.array_record*")
    return path


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 14).round(3))
def test_truncated_shards(share, spoilt):
    data_dir, directory, expected = spoilt
    path = shard_of(directory)
    os.truncate(path, int(path.stat().st_size * share))
    assert check_prepared(data_dir, expected)


@pytest.mark.parametrize("seed", range(16))
def test_mutated_shards(seed, spoilt):
    data_dir, directory, expected = spoilt
    path = shard_of(directory)
    path.write_bytes(mutated(path.read_bytes(), random.Random(seed)))
    check_prepared(data_dir, expected)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "report.json"])
@pytest.mark.parametrize("seed", range(6))
def test_mutated_metadata(name, seed, spoilt):
    data_dir, directory, _ = spoilt
    path = directory / name
    data = path.read_bytes()
    spoilt_data = (b"", data[: len(data) // 2], b"[]", b"null", b"\xff\xfe\0", b"{}")[seed]
    path.write_bytes(spoilt_data)
    try:
        read_back(data_dir)
    except UserError as error:
        one_sentence(error, str(data_dir), "coco_folder/mine")
    else:
        pytest.fail("it was read")


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "objects-label.labels.txt", "report.json", None]
)
def test_missing_files(name, spoilt):
    data_dir, directory, expected = spoilt
    (directory / name if name else shard_of(directory)).unlink()
    assert check_prepared(data_dir, expected)
