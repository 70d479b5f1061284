"""Preparing survives failures, kills, changes and other processes."""

import fcntl
import json
import os
import shutil

import pytest
from tensorflow_datasets.core.utils import shard_utils

from scratchdet_jax.datasets import folders, writing
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.errors import UserError
from tests.data.voc_layout import Folder, annotation, examples, jpeg, obj


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "Set")


@pytest.fixture
def prepare(folder, tmp_path):
    return lambda **options: prepare_voc_folder(folder.path, tmp_path / "data", "mine", **options)


def test_prepared_once_while_nothing_changes(folder, prepare, tmp_path, capsys):
    folder.both("a").split("train", "a")
    report = prepare()
    directory = tmp_path / "data" / "voc_folder" / "mine" / "2.0.0"
    before = {p: p.stat().st_mtime_ns for p in directory.iterdir()}
    capsys.readouterr()
    assert prepare() == report
    assert "already prepared" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in directory.iterdir()} == before

    with pytest.raises(UserError, match="delete that directory"):
        prepare(class_names=["cell"])
    folder.note("a", annotation(obj(box=(11, 5, 30, 25))))
    with pytest.raises(UserError, match="delete that directory"):
        prepare()
    (directory / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"no readable report\.json"):
        prepare()


def test_a_failed_preparation_leaves_nothing_that_looks_complete(
    folder, prepare, tmp_path, monkeypatch
):
    folder.both("a").both("b").split("train", "a", "b")
    read = folders.read_unchanged

    def stop_after_one(image):
        if image.image_id == "b":
            raise RuntimeError("power cut")
        return read(image)

    monkeypatch.setattr(folders, "read_unchanged", stop_after_one)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare()
    files = [p for p in (tmp_path / "data").rglob("*") if p.is_file()]
    assert files == []
    with pytest.raises(UserError, match="there is no data set"):
        examples(tmp_path)
    monkeypatch.undo()
    prepare()
    assert set(examples(tmp_path)) == {"a", "b"}
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["voc_folder"]


def test_a_changed_image_is_checked_again_and_a_change_during_preparation_is_an_error(
    folder, prepare, tmp_path, monkeypatch
):
    folder.both("a").both("b").split("train", "a", "b")
    write = folders.write_dataset

    def change_first(make_builder):
        folder.image("b", jpeg(seed=7)[:-90])
        write(make_builder)

    monkeypatch.setattr(folders, "write_dataset", change_first)
    with pytest.raises(UserError, match=r"b\.jpg changed after it was checked .*again") as error:
        prepare()
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert prepare().counts() == {Kind.BROKEN_IMAGE: 1}


def test_strict_shows_the_report_and_writes_nothing(folder, prepare, tmp_path, capsys):
    folder.both("a", obj(), obj(box=(3, 3, 3, 9))).split("train", "a")
    with pytest.raises(UserError, match="1 defect, which --strict does not allow: nothing was"):
        prepare(strict=True)
    assert "1 × box without area" in capsys.readouterr().out
    assert not (tmp_path / "data" / "voc_folder").exists()
    prepare()
    with pytest.raises(UserError, match="it was prepared with them"):
        prepare(strict=True)


def test_changed_files_and_lists_are_noticed(folder, prepare, tmp_path):
    for image_id in ("a", "b"):
        folder.both(image_id)
    prepare()
    words = "the files, classes or splits differ from those given now: add --force"
    folder.both("c")
    with pytest.raises(UserError, match=words):
        prepare()
    assert prepare(force=True).images == {"train": 3}
    folder.split("train", "b", "c").split("val", "a")
    with pytest.raises(UserError, match=words) as error:
        prepare()
    assert "\n" not in str(error.value)


def test_sets_prepared_before_choices_were_recorded_are_still_read(folder, prepare, tmp_path):
    """With a report that has neither choices nor a division."""
    folder.both("a").split("train", "a")
    report = prepare()
    directory = tmp_path / "data" / "voc_folder" / "mine" / "2.0.0"
    fields = json.loads((directory / "report.json").read_text())
    for new in ("choices", "division"):
        del fields[new]
    (directory / "report.json").write_text(json.dumps(fields))
    assert prepare() == report


def test_a_process_killed_between_two_renames_is_repaired_by_the_next_one(
    folder, prepare, tmp_path
):
    folder.both("a").split("train", "a")
    prepare()
    place = tmp_path / "data" / "voc_folder" / "mine"
    (place / "2.0.0").rename(place / "replaced.2.0.0")
    assert prepare().images == {"train": 1}  # it was there already
    assert os.listdir(place) == ["2.0.0"]


def test_force_prepares_again_and_replaces_the_old_set(folder, prepare, tmp_path):
    folder.both("a").split("train", "a")
    prepare()
    folder.both("b").split("train", "a", "b")
    assert prepare(force=True).images == {"train": 2}
    assert set(examples(tmp_path)) == {"a", "b"}
    place = tmp_path / "data" / "voc_folder" / "mine"
    assert os.listdir(place) == ["2.0.0"]
    assert prepare().images == {"train": 2}
    (place / "2.0.0" / "report.json").write_text("{}")
    assert prepare(force=True).images == {"train": 2}
    shutil.rmtree(place)
    assert prepare(force=True).images == {"train": 2}
    assert os.listdir(tmp_path / "data") == ["voc_folder"]


def test_a_strict_or_failing_force_keeps_the_old_set(folder, prepare, tmp_path, monkeypatch):
    folder.both("a").split("train", "a")
    prepare()
    folder.both("b", obj(), obj(box=(3, 3, 3, 9))).split("train", "a", "b")
    with pytest.raises(UserError, match="nothing was written"):
        prepare(force=True, strict=True)
    assert set(examples(tmp_path)) == {"a"}

    def fail(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(folders, "read_unchanged", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(force=True)
    assert set(examples(tmp_path)) == {"a"}
    assert os.listdir(tmp_path / "data" / "voc_folder" / "mine") == ["2.0.0"]


def test_a_file_system_that_cannot_rename_keeps_the_old_set(folder, prepare, tmp_path, monkeypatch):
    folder.both("a").split("train", "a")
    prepare()
    folder.both("b").split("train", "a", "b")
    rename = writing.Path.rename

    def refuse(path, target):
        if "incomplete." in str(path.parent):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(writing.Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot be replaced \(Input/output error\)"):
        prepare(force=True)
    monkeypatch.undo()
    assert set(examples(tmp_path)) == {"a"}


def test_large_sets_are_split_into_shards_and_keep_the_order_of_the_list(
    folder, prepare, tmp_path, monkeypatch
):
    ids = [f"im{(7 * i) % 40:02}" for i in range(40)]
    for image_id in ids:
        folder.both(image_id)
    folder.split("train", *ids)
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 4 * len(jpeg()))
    prepare()
    shards = list((tmp_path / "data" / "voc_folder" / "mine" / "2.0.0").glob("*.array_record-*"))
    assert len(shards) == 8
    assert list(examples(tmp_path)) == ids


def test_leftovers_of_killed_runs_are_removed_unless_a_process_still_writes(
    folder, prepare, tmp_path
):
    folder.both("a").split("train", "a")
    place = tmp_path / "data" / "voc_folder" / "mine"
    left = place / "incomplete.ABCDEF_2.0.0"
    left.mkdir(parents=True)
    (left / "voc_folder-train.array_record-00000-of-00001").write_bytes(b"half")
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as a process does while it writes
    prepare()
    assert left.exists()
    os.close(handle)
    shutil.rmtree(place / "2.0.0")
    prepare()
    assert [p.name for p in place.iterdir()] == ["2.0.0"]


def test_an_older_version_is_prepared_again_beside_it(folder, prepare, tmp_path):
    folder.both("a").split("train", "a")
    (tmp_path / "data" / "voc_folder" / "mine" / "1.0.0").mkdir(parents=True)
    prepare()
    assert set(examples(tmp_path)) == {"a"}
