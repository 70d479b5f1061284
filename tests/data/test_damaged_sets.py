"""Damaged prepared data sets: a one-line error each, when opened or when read."""

import contextlib
import itertools
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import UserError
from tests.data.batches import train_batches
from tests.data.tfds_sets import make, plain_features

COUNT = 24


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of noise images, so that every byte of its shards matters."""
    path = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(COUNT):
        picture = rng.integers(0, 256, (40, 30, 3), np.uint8)
        box = {"bbox": tfds.features.BBox(0.1, 0.2, 0.3, 0.4), "label": 1}
        rows.append({"image": cv2.imencode(".png", picture)[1].tobytes(), "objects": [box]})
    make(path, "noise", plain_features(), {"train": rows, "test": rows[:3]})
    return path


@pytest.fixture(scope="module")
def images(sound):
    source = DetectionSource("handmade/noise:train", sound)
    return [source[i]["image"] for i in range(COUNT)]


@pytest.fixture
def data_dir(sound, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "data")


def files(data_dir):
    return data_dir / "handmade" / "noise" / "5.0.0"


def shard(data_dir):
    (path,) = files(data_dir).glob("*train.array_record*")
    return path


def refusal(data_dir):
    """The error when opening, or from the first record that cannot be read."""
    with pytest.raises(UserError) as error:
        source = DetectionSource("handmade/noise:train", data_dir)
        for i in range(len(source)):
            source[i]
    assert "\n" not in str(error.value)
    return str(error.value)


CUTS = (0, 1, 100, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -1)


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_shard(cut, data_dir):
    whole = shard(data_dir).read_bytes()
    shard(data_dir).write_bytes(whole[: cut if isinstance(cut, int) else int(cut * len(whole))])
    assert str(shard(data_dir)) in refusal(data_dir)


def test_a_missing_replaced_or_extended_shard(data_dir):
    path, whole = shard(data_dir), shard(data_dir).read_bytes()
    (other,) = files(data_dir).glob("*test.array_record*")
    path.unlink()
    assert f"{path} of handmade/noise cannot be read (No such file" in refusal(data_dir)
    shutil.copy(other, path)
    words = f"is damaged or of another data set: it has 3 readable records instead of {COUNT}"
    assert f"{path} of handmade/noise {words}" in refusal(data_dir)
    for content in (whole + b"x", random.Random(0).randbytes(len(whole)), bytes(len(whole))):
        path.write_bytes(content)
        assert str(path) in refusal(data_dir)
    path.unlink()
    path.mkdir()
    assert str(path) in refusal(data_dir)
    # The other split is still intact.
    assert len(DetectionSource("handmade/noise:test", data_dir)) == 3


def damage_data(path, rng):
    """Overwrites bytes of the records (the last 64 KiB are the index)."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data) - 65536)
    length = rng.choice((1, 10, 1000, 20000))
    data[start : start + length] = rng.randbytes(len(data[start : start + length]))
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(30))
def test_garbage_in_a_shard_never_changes_an_example(seed, data_dir, images):
    damage_data(shard(data_dir), random.Random(seed))
    try:
        source = DetectionSource("handmade/noise:train", data_dir)
    except UserError as error:
        assert str(shard(data_dir)) in str(error)
        return
    assert len(source) == COUNT
    for i in range(COUNT):
        try:
            assert source[i]["image"] == images[i]
        except UserError as error:
            assert str(error).startswith(f"record {i} of handmade/noise:train cannot be read (")
            assert f"{shard(data_dir)} is damaged" in str(error)
            with pytest.raises(UserError):
                source.image_id(i)


def test_most_of_that_garbage_is_detected(sound, tmp_path):
    met = 0
    for seed in range(10):
        copy = shutil.copytree(sound, tmp_path / str(seed))
        damage_data(shard(copy), random.Random(seed))
        with contextlib.suppress(UserError):
            source = DetectionSource("handmade/noise:train", copy)
            [source[i] for i in range(COUNT)]
            met -= 1
        met += 1
    assert met >= 5


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_the_loader_report_the_same(threads, data_dir):
    data = bytearray(shard(data_dir).read_bytes())
    middle = (len(data) - 65536) // 2
    data[middle : middle + 5000] = bytes(5000)
    source = DetectionSource("handmade/noise:train", data_dir)
    shard(data_dir).write_bytes(data)  # damaged while it is open
    batches = train_batches(
        source, batch_size=4, canvas=(64, 64), max_boxes=3, seed=0, threads=threads
    )
    with contextlib.closing(batches), pytest.raises(UserError) as error:
        for _ in itertools.islice(batches, COUNT):
            pass
    assert f"{shard(data_dir)} is damaged" in str(error.value)


def rewrite(path, change):
    """Rewrites a shard with one record changed."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i, record in enumerate(records):
        example = tf_example_pb2.Example.FromString(record)
        changed = change(example.features.feature) if i == 5 else None
        writer.write(changed if changed is not None else example.SerializeToString())
    writer.close()


def without(key):
    def change(fields):
        del fields[key]

    return change


def second_label(fields):
    fields["objects/label"].int64_list.value.append(1)


def huge_label(fields):
    fields["objects/label"].int64_list.value[0] = 2**40


def no_image(fields):
    del fields["image"].bytes_list.value[:]


def other_kind(fields):
    fields["image"].int64_list.value.append(1)


@pytest.mark.parametrize(
    "change",
    [
        without("image"),
        without("objects/bbox"),
        without("objects/label"),
        second_label,
        huge_label,
        no_image,
        other_kind,
        lambda fields: b"",
        lambda fields: b"no message",
    ],
)
def test_an_invalid_record(change, data_dir):
    rewrite(shard(data_dir), lambda fields: None)
    source = DetectionSource("handmade/noise:train", data_dir)
    [source[i] for i in range(COUNT)]
    rewrite(shard(data_dir), change)
    sentence = refusal(data_dir)
    assert sentence.startswith("record 5 of handmade/noise:train cannot be read (")
    assert str(shard(data_dir)) in sentence


METADATA = ("dataset_info.json", "features.json", "objects-label.labels.txt")


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize(  # as class names, each of these is too few
    "content", [None, b"", b"{}", b"[]", b"null", b"\xff\x00\xfe", b'{"a": {"b": 3}}', b"7"]
)
def test_invalid_metadata(name, content, data_dir):
    path = files(data_dir) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert str(files(data_dir)) in refusal(data_dir)


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("seed", range(25))
def test_mutated_metadata(name, seed, data_dir, images):
    """It is refused with a one-line error, or every image is still there."""
    rng, path = random.Random(seed), files(data_dir) / name
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    if seed % 3 == 0:
        del data[start:]
    elif seed % 3 == 1:
        data[start] = rng.choice(b'0123456789"{}[]:, x\xff')
    else:
        del data[start : start + rng.choice((1, 5, 50))]
    path.write_bytes(data)
    try:
        source = DetectionSource("handmade/noise:train", data_dir)
        found = [source[i] for i in range(len(source))]
    except UserError as error:
        assert "\n" not in str(error)
        assert "handmade/noise" in str(error)
        return
    assert [example["image"] for example in found] == images
    assert all(example["labels"].tolist() == [2] for example in found)


@pytest.mark.parametrize("lengths", [["23"], ["25"], ["0"], ["-1"], [], ["12", "12"], ["1e3"]])
def test_wrong_counts_never_change_the_data_set(lengths, data_dir):
    path = files(data_dir) / "dataset_info.json"
    info = json.loads(path.read_text())
    (split,) = (split for split in info["splits"] if split["name"] == "train")
    assert split["shardLengths"] == [str(COUNT)]
    split["shardLengths"] = lengths
    path.write_text(json.dumps(info))
    assert "handmade/noise" in refusal(data_dir)


def test_missing_directories(data_dir):
    shutil.rmtree(files(data_dir))
    files(data_dir).mkdir()
    assert f"{files(data_dir)} cannot be read" in refusal(data_dir)
    assert "it has no dataset_info.json" in refusal(data_dir)
    files(data_dir).rmdir()
    for place in (data_dir, data_dir / "nowhere", files(data_dir).parent):
        assert f"there is no data set handmade/noise in {place} (it has none)" in refusal(place)
    (data_dir / "file").write_text("")
    assert "no data set handmade/noise" in refusal(data_dir / "file")


@contextlib.contextmanager
def as_somebody():
    """Root may read everything, so it becomes another user for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", [*METADATA, "shard", "version", "root"])
def test_missing_permissions(what, sound):
    # Not in pytest's directory, which only its owner can enter.
    with tempfile.TemporaryDirectory() as directory:
        data_dir = shutil.copytree(sound, Path(directory) / "data")
        for path in (data_dir.parent, data_dir, *data_dir.rglob("*")):
            path.chmod(0o755)
        places = {"shard": shard(data_dir), "version": files(data_dir), "root": data_dir}
        closed = places.get(what, files(data_dir) / what)
        with as_somebody():
            assert len(DetectionSource("handmade/noise:train", data_dir)) == COUNT
        closed.chmod(0)
        with as_somebody():
            sentence = refusal(data_dir)
        closed.chmod(0o755)
    assert str(closed) in sentence and "ermission" in sentence
