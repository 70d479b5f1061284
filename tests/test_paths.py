"""Paths that users give: home folders, URLs, and that every command treats them alike."""

import ast
import os
from pathlib import Path

import pytest

import scratchdet_jax
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import in_bucket, local_path, run_path, user_path
from scratchdet_jax.tools import (
    doctor,
    export,
    forecast,
    import_torch,
    landscape,
    plot,
    prepare,
    replay,
    report,
    score,
    train,
)
from scratchdet_jax.tools import eval as eval_tool
from scratchdet_jax.tools.predict import __main__ as predict
from tests.command import exit_status

ROOT = Path(__file__).parents[1]
URL = "ftp://host/folder"


def test_a_home_folder_is_expanded_and_nothing_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/runs/a") == Path("/home/me/runs/a")
    assert user_path("~") == Path("/home/me")
    assert user_path("~no such user/a") == Path("~no such user/a")
    for text in ("a/~/b", "$HOME/a", "C:/photos", "photo.jpg:2", "a@b:c", "", Path("a/b")):
        assert user_path(text) == Path(text)


def test_a_path_in_a_bucket_is_a_path_object():
    path = user_path("gs://bucket/runs/a") / "b.txt"
    assert str(path) == "gs://bucket/runs/a/b.txt" and path.name == "b.txt"
    assert in_bucket(path) and str(path.parent) == "gs://bucket/runs/a"
    assert str(run_path("gs://bucket/run")) == "gs://bucket/run"
    assert user_path(path) == path
    for text in ("a//b", "/a/b", "C:/a", "gs"):
        assert not in_bucket(user_path(text))


@pytest.mark.parametrize("text", ["https://host/a.jpg", "file:///a", "gs:/b", "gs:///b", "az://b"])
@pytest.mark.parametrize("make", [user_path, run_path, local_path])
def test_other_urls_are_refused_with_what_works(text, make):
    with pytest.raises(UserError, match=r"cannot be used: .*(gs://|copy the files first)"):
        make(text)


@pytest.mark.parametrize("scheme", ["gs", "s3", "hf"])
def test_without_its_package_a_bucket_is_refused_with_the_command(scheme, monkeypatch):
    monkeypatch.setattr("scratchdet_jax.paths.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{scheme}://b/a needs the package \w+: pip install"):
        user_path(f"{scheme}://b/a")


def test_a_run_is_not_kept_in_stores_that_orbax_does_not_write():
    with pytest.raises(
        UserError, match=r"to a folder or to gs:// only \(Orbax\): name one of these"
    ):
        run_path("s3://bucket/run")
    with pytest.raises(UserError, match="read from a folder of this machine: copy the files"):
        local_path("gs://bucket/photos")


COMMANDS = [
    (train.main, "--config=configs/shapes.py", f"--workdir={URL}"),
    (train.main, "--config=configs/shapes.py", f"--config.data.dir={URL}", "--workdir=run"),
    (train.main, "--config=configs/shapes.py", f"--config.init_from={URL}", "--workdir=run"),
    (train.main, "--config=configs/voc_folder.py", f"--config.data.folder={URL}", "--workdir=run"),
    (train.main, "--config=configs/shapes.py", f"--config.compilation_cache={URL}"),
    (eval_tool.main, f"--workdir={URL}"),
    (predict.main, f"--workdir={URL}", "--output=a"),
    (predict.main, "--workdir=a", f"--output={URL}"),
    (export.main, f"--workdir={URL}", "--output=a"),
    (export.main, "--workdir=a", f"--output={URL}"),
    (report.main, URL, "--output=a.html"),
    (report.main, "a", f"--output={URL}"),
    (report.main, "a", "--output=a.html", f"--json={URL}"),
    (plot.main, URL, "--output=a.png"),
    (replay.main, f"--workdir={URL}"),
    (landscape.main, URL),
    (doctor.main, "shapes", f"--data_dir={URL}"),
    (doctor.main, "shapes", f"--html={URL}"),
    (prepare.main, "shapes", f"--data_dir={URL}"),
    (prepare.main, "voc", f"--folder={URL}"),
    (prepare.main, "voc", "--folder=photos", f"--data_dir={URL}"),
    (prepare.main, "yolo", f"--data={URL}", "--name=a"),
    (score.main, "coco", f"--annotations={URL}", "--detections=a"),
    (forecast.main, "train", "--config=configs/shapes.py", "--device=v5e:2x2", f"--json={URL}"),
    (import_torch.main, "--config=configs/shapes.py", f"--checkpoint={URL}", "--workdir=a"),
]


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda c: " ".join([c[0].__module__.split(".")[-1], *c[1:]])
)
def test_no_command_makes_a_folder_of_a_url(command, tmp_path, monkeypatch, capsys):
    if command[0] is forecast.main:
        pytest.importorskip("libtpu", reason="the TPUs' compiler exists for Linux on x86-64 only")
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "photos").mkdir()
    main, *arguments = command
    assert exit_status(main, *arguments) == 1
    error = capsys.readouterr().err
    assert f"{URL} cannot be used: " in error and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if "host" in path.name or ":" in path.name]


def test_load_refuses_a_url():
    with pytest.raises(UserError, match="cannot be used: "):
        scratchdet_jax.load(URL)


def test_a_home_folder_is_a_workdir_and_a_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=f"there is no run in {tmp_path}/run"):
        scratchdet_jax.load("~/run")
    assert not (tmp_path / "~").exists()


GIVEN = ("options", "values", "config", "settings")  # what holds the words of a user


def paths_of_users(tree):
    """Lines that make a path of a user's text by anything but `user_path`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.keyword)
            and node.arg == "type"
            and ast.unparse(node.value) == "Path"
        ):
            yield node.value.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.endswith("expanduser"):
            yield node.lineno
        elif called.rpartition(".")[2] == "Path":
            names = {n.id for a in node.args for n in ast.walk(a) if isinstance(n, ast.Name)}
            if names & {*GIVEN}:
                yield node.lineno


def test_users_paths_are_made_by_user_path_alone():
    wrong = []
    for folder in ("scratchdet_jax", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = paths_of_users(ast.parse(path.read_text(encoding="utf-8")))
            wrong += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert wrong == ["scratchdet_jax/paths.py:" + wrong[0].rpartition(":")[2]]


@pytest.mark.parametrize(
    "code",
    ["Path(options.workdir)", "f(type=Path)", "os.path.expanduser(a)", "epath.Path(values.x)"],
)
def test_the_reading_of_the_code_finds(code):
    assert list(paths_of_users(ast.parse(code))) == [1]
