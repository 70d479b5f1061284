"""Data sets in a bucket: prepared into it, and copied from it, whatever happens on the way."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scratchdet_jax.buckets import cached, gcs
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.tfds_dataset import NoDataSetError, NoSplitError
from scratchdet_jax.datasets import shapes
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_bytes
from scratchdet_jax.paths import user_path
from scratchdet_jax.tools import prepare
from tests.command import exit_status
from tests.own_photos import write_photos

TRAIN = "shapes-train.array_record-00000-of-00001"
VALIDATION = "shapes-validation.array_record-00000-of-00001"


@pytest.fixture
def local(tmp_path, monkeypatch):
    """The shapes, smaller, on a disk."""
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 12, "validation": 5})
    shapes.prepare_shapes(tmp_path / "local")
    return tmp_path / "local"


@pytest.fixture
def remote(local, bucket):
    """The same in a bucket."""
    for path in (local / "shapes/1.0.0").iterdir():
        write_bytes(user_path(f"{bucket}/data/shapes/1.0.0/{path.name}"), path.read_bytes())
    return f"{bucket}/data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def copies(cache):
    return {path.name: path for path in cache.rglob("*") if path.is_file()}


def same(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        assert one[i]["image"] == other[i]["image"]
        np.testing.assert_array_equal(one[i]["boxes"], other[i]["boxes"])


def test_a_split_is_copied_once_and_nothing_else(local, remote, cache, storage, capsys):
    source = DetectionSource("shapes:validation", remote, str(cache))
    same(source, DetectionSource("shapes:validation", local))
    assert VALIDATION in copies(cache) and TRAIN not in copies(cache)
    bucket = remote.removeprefix("gs://")
    assert (cache / "gs" / bucket / "shapes/1.0.0" / VALIDATION).exists()
    times = {name: path.stat().st_mtime_ns for name, path in copies(cache).items()}
    DetectionSource("shapes:validation[:2]", remote, str(cache))
    same(
        DetectionSource("shapes:train", remote, str(cache)), DetectionSource("shapes:train", local)
    )
    kept = copies(cache)
    assert all(kept[n].stat().st_mtime_ns == t for n, t in times.items() if not n.startswith("."))


def test_what_has_changed_in_the_bucket_is_copied_again(local, remote, cache, monkeypatch):
    DetectionSource("shapes:validation", remote, str(cache))
    monkeypatch.setattr(shapes, "SEED", 7)
    shutil.rmtree(local)
    shapes.prepare_shapes(local)
    for path in (local / "shapes/1.0.0").iterdir():
        write_bytes(user_path(f"{remote}/shapes/1.0.0/{path.name}"), path.read_bytes())
    same(
        DetectionSource("shapes:validation", remote, str(cache)),
        DetectionSource("shapes:validation", local),
    )


def test_a_copy_that_was_shortened_is_made_again(local, remote, cache):
    DetectionSource("shapes:validation", remote, str(cache))
    path = copies(cache)[VALIDATION]
    path.write_bytes(path.read_bytes()[:-1])
    same(
        DetectionSource("shapes:validation", remote, str(cache)),
        DetectionSource("shapes:validation", local),
    )


def test_an_interrupted_copy_continues_where_it_stopped(
    local, remote, cache, storage, monkeypatch, capsys
):
    monkeypatch.setattr(cached, "_CHUNK", 2000)
    monkeypatch.setattr(cached, "_THREADS", 1)
    monkeypatch.setattr(gcs, "PATIENCE", 0.1)
    with pytest.MonkeyPatch.context() as patch:
        read, count = cached._read, [0]

        def fail_after_five(system, path, start, end):
            count[0] += TRAIN in path
            if count[0] > 5:
                storage.network.go_away(3600)
            return read(system, path, start, end)

        patch.setattr(cached, "_read", fail_after_five)
        with pytest.raises(UserError, match=r"cannot be copied .*\(no answer.*to continue"):
            DetectionSource("shapes:train", remote, str(cache))
    assert TRAIN not in copies(cache)
    (part,) = [path for name, path in copies(cache).items() if name.endswith(".part")]
    assert part.stat().st_size == 5 * 2000
    storage.network.away_until = 0.0
    begun = storage.network.requests
    source = DetectionSource("shapes:train", remote, str(cache))
    same(source, DetectionSource("shapes:train", local))
    size = copies(cache)[TRAIN].stat().st_size
    assert not any(name.endswith(".part") for name in copies(cache))
    assert storage.network.requests - begun < (size - 5 * 2000) / 2000 + 30


def test_a_copy_that_differs_is_refused(local, remote, cache, monkeypatch):
    read = cached._read

    def flip(system, path, start, end):
        content = read(system, path, start, end)
        return content[:-1] + bytes([content[-1] ^ 1]) if VALIDATION in path else content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_read", flip)
        with pytest.raises(UserError, match=rf"copy of gs://.*{VALIDATION} differs .*CRC-32C"):
            DetectionSource("shapes:validation", remote, str(cache))
    assert VALIDATION not in copies(cache)
    DetectionSource("shapes:validation", remote, str(cache))


def test_too_little_room_is_said_before_the_copy(remote, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    message = r"needs [\d.]+ [MG]B, but config.data.cache .* has 0.0 MB free"
    with pytest.raises(UserError, match=message):
        DetectionSource("shapes:train", remote, str(cache))
    assert TRAIN not in copies(cache)


def test_a_cache_that_cannot_be_written_is_named(remote, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config.data.cache .*file/cache \(Not a directory\)"):
        DetectionSource("shapes:train", remote, str(tmp_path / "file/cache"))


def test_missing_sets_and_splits_are_named_as_on_a_disk(remote, cache):
    with pytest.raises(NoSplitError, match=r"no split 'test' .*; it has train \(12 images\)"):
        DetectionSource("shapes:test", remote, str(cache))
    with pytest.raises(
        NoDataSetError, match=rf"no data set voc/2007 in {remote} \(it has shapes\)"
    ):
        DetectionSource("voc/2007:train", remote, str(cache))


def test_the_embedded_set_makes_itself_in_a_bucket(bucket, cache, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 12, "validation": 5})
    source = DetectionSource("shapes:train", f"{bucket}/data", str(cache))
    assert len(source) == 12
    assert "uploading" in capsys.readouterr().out


def test_prepare_writes_to_a_bucket_completely_or_not_at_all(
    bucket, storage, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path)
    command = ["voc", "--folder=cells", "--name=mine"]
    assert exit_status(prepare.main, *command, "--data_dir=data") == 0
    target = f"{bucket}/data"
    directory = storage.path(f"{target}/voc_folder/mine/2.0.0")
    command.append(f"--data_dir={target}")

    with monkeypatch.context() as patch:
        patch.setattr(gcs, "PATIENCE", 0.1)
        written = []
        real = write_bytes

        def fail_at_third(path, content):
            written.append(path)
            if len(written) == 3:
                storage.network.go_away(3600)
            real(path, content)

        patch.setattr("scratchdet_jax.datasets.writing.write_bytes", fail_at_third)
        assert exit_status(prepare.main, *command) == 1
        error = capsys.readouterr().err
        assert re.search(r"error: gs://\S+ cannot be written \(no answer", error)
    storage.network.away_until = 0.0
    assert not (directory / "dataset_info.json").exists()
    with pytest.raises(NoDataSetError):
        DetectionSource("voc_folder/mine:train", target, str(tmp_path / "cache"))

    assert exit_status(prepare.main, *command) == 0
    mine, theirs = Path("data/voc_folder/mine/2.0.0"), directory
    names = {path.name for path in mine.iterdir()}
    assert {path.name for path in theirs.iterdir()} == names
    for name in names - {"report.json", "dataset_info.json"}:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    report = json.loads((theirs / "report.json").read_text())
    assert report["directory"].startswith(target)

    capsys.readouterr()
    assert exit_status(prepare.main, *command) == 0
    assert "already prepared in gs://" in capsys.readouterr().out
    assert exit_status(prepare.main, *command, "--val=0.3") == 1  # other options: not replaced
    assert "was prepared from" in capsys.readouterr().err
    assert exit_status(prepare.main, *command, "--val=0.3", "--force") == 0
    source = DetectionSource("voc_folder/mine:val", target, str(tmp_path / "cache"))
    assert len(source) > 0
