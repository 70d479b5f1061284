"""Buckets as folders: what gcsfs alone gets wrong, and every fault of the network."""

import threading
import time

import aiohttp
import pytest

from scratchdet_jax.buckets import gcs
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder, write_bytes, write_text_atomically
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.paths import user_path
from scratchdet_jax.tools import doctor, export, plot, train
from scratchdet_jax.tools import eval as eval_tool
from scratchdet_jax.tools.predict import __main__ as predict
from tests.command import exit_status

FAULTS = ("429", "500", "502", "503", "cut", "part")


def test_files_are_written_read_listed_and_deleted(bucket, storage):
    folder = user_path(f"{bucket}/a/b")
    assert not folder.exists() and not folder.is_dir()
    write_text_atomically(folder / "c.txt", "content")
    assert storage.path(f"{bucket}/a/b/c.txt").read_text() == "content"
    assert (folder / "c.txt").read_bytes() == b"content" and (folder / "c.txt").is_file()
    assert folder.is_dir() and list(folder.iterdir()) == [folder / "c.txt"]
    (folder / "c.txt").unlink()
    assert not folder.exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_network_passes_unnoticed(bucket, storage, fault, capsys):
    path = user_path(f"{bucket}/a.bin")
    content = bytes(range(256)) * 100
    for action in (
        lambda: write_bytes(path, content[:7]),
        lambda: path.write_bytes(content) == len(content),  # as Orbax writes
        lambda: path.read_bytes() == content,
        lambda: path.exists(),
        lambda: path.parent.is_dir(),
        lambda: list(path.parent.iterdir()) == [path],
        lambda: gcs.read_versioned(path)[0] == content,
        lambda: not (path.parent / "missing").exists(),
        lambda: writable_folder(path.parent, "--output") == path.parent,
        lambda: path.unlink(),
    ):
        storage.network.fail_next[:] = [fault, fault]
        assert action() in (True, None)
        storage.network.fail_next.clear()
    assert storage.network.faults[fault] >= 10
    with pytest.raises(FileNotFoundError):
        path.unlink()
    assert capsys.readouterr().err == ""


def test_a_server_that_is_away_is_waited_for_and_reported_once(
    bucket, storage, monkeypatch, capsys
):
    monkeypatch.setattr(gcs, "_SILENCE", 1.0)
    path = user_path(f"{bucket}/a.bin")
    storage.network.go_away(4.0)
    threads = [threading.Thread(target=write_bytes, args=(path, b"1")) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 3.5
    assert path.read_bytes() == b"1"
    report = capsys.readouterr().err
    assert report.count("the bucket does not answer") == 1 and report.count("answers again") == 1


def test_a_server_that_stays_away_is_an_error_and_not_an_absent_file(
    bucket, storage, monkeypatch, tmp_path
):
    path = user_path(f"{bucket}/a.bin")
    write_bytes(path, b"1")
    monkeypatch.setattr(gcs, "PATIENCE", 0.5)
    storage.network.go_away(60)
    for action in (path.exists, path.is_dir, path.read_bytes, lambda: list(path.parent.iterdir())):
        with pytest.raises(OSError) as raised:
            action()
        assert raised.value.strerror.startswith("no answer for 0.5 s")
    with pytest.raises(UserError, match=r"--output gs://.* cannot be written \(no answer for"):
        writable_folder(path.parent, "--output")


def test_a_request_that_stalls_is_repeated(bucket, storage):
    write_bytes(user_path(f"{bucket}/a"), b"1")
    limit = aiohttp.ClientTimeout(sock_read=0.5)
    system = gcs.Bucket(requests_timeout=limit, skip_instance_cache=True)
    storage.network.fail_next[:] = ["slow"]
    began = time.monotonic()
    assert system.cat_file(f"{bucket}/a") == b"1"
    assert time.monotonic() - began < 1.9


@pytest.mark.parametrize("status", ["401", "403"])
def test_missing_rights_are_an_error_at_once(bucket, storage, status):
    storage.network.fail_next[:] = [status] * 10
    began = time.monotonic()
    with pytest.raises(UserError, match=r"--output gs://.* cannot be written \(permission denied"):
        writable_folder(user_path(bucket), "--output")
    assert time.monotonic() - began < 5


def test_without_rights_a_command_says_so_in_a_sentence(bucket, storage, capsys, monkeypatch):
    storage.network.share, storage.network.kinds = 1.0, ("403",)
    try:
        for main, *arguments in (
            (eval_tool.main, f"--workdir={bucket}/run"),
            (plot.main, f"{bucket}/run", "--output=curves.png"),
            (export.main, f"--workdir={bucket}/run", "--output=a.jaxexport"),
            (train.main, "--config=configs/shapes.py", f"--workdir={bucket}/run"),
            (train.main, "--config=configs/shapes.py", f"--config.data.dir={bucket}/data",
             f"--workdir={bucket}/run"),
            (doctor.main, "shapes", f"--data_dir={bucket}/data"),
            (predict.main, f"--workdir={bucket}/a.jaxexport", "--output=found"),
        ):  # fmt: skip
            began = time.monotonic()
            assert exit_status(main, *arguments) == 1
            error = capsys.readouterr().err
            assert error.startswith("error: ") and "Traceback" not in error
            assert bucket in error and "permission denied" in error
            assert len(error.splitlines()) == 1 and time.monotonic() - began < 10
    finally:
        storage.network.share, storage.network.kinds = 0.0, ("429", "503", "cut", "part", "slow")


def test_a_missing_bucket_is_named_at_once(bucket):
    with pytest.raises(UserError, match=r"gs://none-at-all/run .*\(there is no such bucket\)"):
        writable_folder(user_path("gs://none-at-all/run"), "--workdir")


def test_what_others_write_is_seen(bucket):
    from gcsfs.core import GCSFileSystem

    folder = user_path(f"{bucket}/a")
    write_bytes(folder / "1", b"1")
    assert [path.name for path in folder.iterdir()] == ["1"]
    other = GCSFileSystem(skip_instance_cache=True)
    other.pipe_file(str(folder / "2"), b"2")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    other.rm(str(folder / "1"))
    assert not (folder / "1").exists() and (folder / "2").exists()


def test_a_write_on_condition(bucket):
    path = user_path(f"{bucket}/lock")
    assert gcs.read_versioned(path) is None
    first = gcs.write_if(path, b"1", 0)
    assert gcs.read_versioned(path) == (b"1", first)
    for generation in (0, first + 1):
        with pytest.raises(FileExistsError):
            gcs.write_if(path, b"2", generation)
    second = gcs.write_if(path, b"2", first)
    assert second != first and gcs.read_versioned(path) == (b"2", second)


def test_checksums_are_those_of_the_content(bucket):
    import google_crc32c

    contents = {"a.bin": b"abc" * 1000, "inner/b.bin": b"", "inner/deep/c": bytes(70_000)}
    for name, content in contents.items():
        write_bytes(user_path(bucket) / "folder" / name, content)
    write_bytes(user_path(bucket) / "folder2", b"beside")
    found = gcs.checksums(user_path(f"{bucket}/folder"))
    assert found.keys() == contents.keys()
    import base64

    for name, content in contents.items():
        crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        assert found[name] == (len(content), crc)


def test_a_mirror_of_a_local_folder_is_the_folder(tmp_path):
    mirror = Mirror(tmp_path / "run", ["metrics.jsonl"])
    assert mirror.folder == mirror.target == tmp_path / "run"
    mirror.publish()
    mirror.close()
    assert not (tmp_path / "run").exists()


def test_a_mirror_keeps_a_bucket_equal_to_its_folder(bucket, storage, monkeypatch):
    monkeypatch.setattr("scratchdet_jax.mirror.PUBLISHED_EVERY", 0.05)
    target = user_path(f"{bucket}/run")
    write_bytes(target / "log", b"one\n")
    write_bytes(target / "other", b"not mine")
    mirror = Mirror(target, ["log", "missing"])
    assert [path.name for path in mirror.folder.iterdir()] == ["log"]
    with (mirror.folder / "log").open("a") as file:
        file.write("two\n")
    (mirror.folder / "inner").mkdir()
    (mirror.folder / "inner/a").write_text("a")
    (mirror.folder / ".part").write_text("incomplete")
    mirror.publish()
    assert (target / "log").read_text() == "one\ntwo\n" and (target / "inner/a").exists()
    assert not (target / ".part").exists()
    requests = storage.network.requests
    mirror.publish()
    assert storage.network.requests == requests  # nothing has changed
    (mirror.folder / "inner/a").unlink()
    with (mirror.folder / "log").open("a") as file:
        file.write("three\n")
    for _ in range(100):  # by itself
        if (target / "log").read_text() == "one\ntwo\nthree\n" and not (
            target / "inner/a"
        ).exists():
            break
        time.sleep(0.05)
    (mirror.folder / "late").write_text("late")
    mirror.close()
    assert (target / "late").read_text() == "late" and (target / "other").exists()
    assert not mirror.folder.exists()


def test_a_mirror_that_cannot_be_written_keeps_its_files(bucket, storage, monkeypatch, capsys):
    monkeypatch.setattr("scratchdet_jax.mirror.PUBLISHED_EVERY", 0.05)
    monkeypatch.setattr(gcs, "PATIENCE", 0.2)
    mirror = Mirror(user_path(f"{bucket}/run"))
    (mirror.folder / "log").write_text("one")
    storage.network.go_away(60)
    for _ in range(100):
        if "cannot be written" in capsys.readouterr().err:
            break
        time.sleep(0.1)
    else:
        pytest.fail("nothing was reported")
    with pytest.raises(UserError, match=rf"the files are in {mirror.folder}; copy them yourself"):
        mirror.close()
    assert (mirror.folder / "log").read_text() == "one"
