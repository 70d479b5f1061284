"""s3://, by the server of moto: what is read or written as a whole, and that a run is refused."""

import json
from pathlib import Path

import cv2
import fsspec
import pytest
from etils import epath

import scratchdet_jax
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets import shapes
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder, write_text_atomically
from scratchdet_jax.paths import user_path
from scratchdet_jax.tools import export, train
from scratchdet_jax.tools.predict import __main__ as predict
from tests.command import exit_status
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
moto_server = pytest.importorskip("moto.server", reason="the server of s3:// needs moto and flask")


@pytest.fixture(scope="module")
def bucket():
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of a tiny detector."""
    from scratchdet_jax.training.loop import train_and_evaluate

    folder = tmp_path_factory.mktemp("s3")
    with plain_backbone(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", {"train": 16, "validation": 4})
        fields = FIELDS | {"num_steps": 1, "data.max_boxes": 12, "data.eval": ""}
        config = tiny_config(**fields, **{"data.dir": str(folder / "data")})
        train_and_evaluate(config, folder / "run")
        yield folder / "run"


def test_files_are_written_read_listed_and_deleted(bucket):
    folder = user_path(f"{bucket}/a/b")
    assert not folder.exists()
    assert writable_folder(folder, "--output") == folder
    write_text_atomically(folder / "c.txt", "content")
    assert (folder / "c.txt").read_bytes() == b"content"
    assert list(folder.iterdir()) == [folder / "c.txt"]
    with pytest.raises(UserError, match=r"--output s3://none cannot be written \("):
        writable_folder(user_path("s3://none"), "--output")


def test_a_server_that_does_not_answer_is_an_error_in_a_sentence(bucket, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", fsspec.filesystem)
    try:
        flags = (f"--workdir={bucket}/a.jaxexport", "--output=found")
        assert exit_status(predict.main, *flags) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {bucket} cannot be used (")
        assert len(error.splitlines()) == 1
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_a_run_is_refused_with_the_reason(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs/shapes.py"
    assert exit_status(train.main, f"--config={config}", f"--workdir={bucket}/run") == 1
    assert "to a folder or to gs:// only (Orbax)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"to a folder or to gs:// only"):
        scratchdet_jax.load(f"{bucket}/run")
    assert not list(tmp_path.iterdir())


def test_prepared_data_are_read_through_the_cache(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 12, "validation": 5})
    shapes.prepare_shapes(f"{bucket}/data")
    shapes.prepare_shapes(tmp_path / "local")
    source = DetectionSource("shapes:train", f"{bucket}/data", str(tmp_path / "cache"))
    local = DetectionSource("shapes:train", tmp_path / "local")
    assert [source[i]["image"] for i in range(12)] == [local[i]["image"] for i in range(12)]
    before = sorted((tmp_path / "cache").rglob("*train.array_record*"))[0].stat().st_mtime_ns
    DetectionSource("shapes:train", f"{bucket}/data", str(tmp_path / "cache"))
    after = sorted((tmp_path / "cache").rglob("*train.array_record*"))[0].stat().st_mtime_ns
    assert after == before


def test_an_export_is_written_loaded_and_used(bucket, workdir, tmp_path, capsys):
    file = f"{bucket}/models/a.jaxexport"
    assert exit_status(export.main, f"--workdir={workdir}", f"--output={file}") == 0
    detector = scratchdet_jax.load(file)
    assert detector.class_names == shapes.CLASS_NAMES
    scene = shapes.make_scene("train", 0).image
    cv2.imwrite(str(tmp_path / "a.png"), scene)
    output = f"{bucket}/found"
    flags = [f"--workdir={file}", f"--output={output}", "--threshold=0"]
    assert exit_status(predict.main, str(tmp_path / "a.png"), *flags) == 0
    names = {path.name for path in user_path(output).iterdir()}
    assert names == {"a.png", "grid.png", "detections.json"}
    record = json.loads((user_path(output) / "detections.json").read_text())
    assert record["annotations"]
    # The same command again replaces its own files; another's file is kept.
    assert exit_status(predict.main, str(tmp_path / "a.png"), *flags) == 0
    write_text_atomically(user_path(output) / "a.png", "mine")
    assert exit_status(predict.main, str(tmp_path / "a.png"), *flags) == 1
    assert "exists and was not written by this command" in capsys.readouterr().err
