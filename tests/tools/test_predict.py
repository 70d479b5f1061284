"""predict: what it reads, what it writes, and that it replaces nothing but its own results."""

import csv
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from pycocotools.coco import COCO

import scratchdet_jax
from scratchdet_jax.detector import build_detector
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.tools.predict import __main__ as predict
from scratchdet_jax.tools.predict import inputs, outputs
from scratchdet_jax.tools.score import read_voc_files
from scratchdet_jax.training.optimizer import make_optimizer
from tests.command import exit_status
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    config = tiny_config(**FIELDS, **{"eval.score_threshold": 0.0})
    with plain_backbone():
        detector = build_detector(config, ("cat", "dog"))
        state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
        checkpoints = Checkpoints(path)
        checkpoints.save(7, jax.device_get(state), RunInfo(config, ("cat", "dog")))
        checkpoints.close()
        yield path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("holiday.png", "other.jpg"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (40, 60, 3), np.uint8))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(workdir, output, *images):
    return exit_status(
        predict.main, f"--workdir={workdir}", "--checkpoint=latest", f"--output={output}", *images
    )


def test_the_folder_of_the_photos_as_output(workdir, photos, capsys, monkeypatch):
    before = content(photos)
    assert run(workdir, photos, photos / "holiday.png", photos / "other.jpg") == 1
    assert content(photos) == before
    assert capsys.readouterr().err == (
        f"error: {photos / 'holiday.png'} is one of the images and would be replaced: choose "
        "another folder with --output\n"
    )
    monkeypatch.chdir(photos)  # other spellings of the same folder
    assert run(workdir, ".", "holiday.png") == 1
    assert run(workdir, f"../{photos.name}", photos / "holiday.png") == 1
    (photos.parent / "link").symlink_to(photos)
    assert run(workdir, photos.parent / "link", "other.jpg", "holiday.png") == 1
    assert content(photos) == before


@pytest.mark.parametrize("name", ["other.png", "grid.png", "detections.json"])
def test_a_file_of_somebody_else_is_kept(workdir, photos, name, capsys):
    (photos / name).write_text('{"images": [], "annotations": []}')
    before = content(photos)
    assert run(workdir, photos, photos / "other.jpg") == 1
    assert content(photos) == before
    assert f"{photos / name} exists and was not written by this command" in capsys.readouterr().err


def test_a_link_is_not_followed(workdir, photos, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "other.png").symlink_to(tmp_path / "missing.png")
    assert run(workdir, output, photos / "other.jpg") == 1
    assert content(photos).keys() == {"holiday.png", "other.jpg"}
    assert not (tmp_path / "missing.png").exists()


def test_own_results_are_replaced_and_those_of_another_run_kept(workdir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    for _ in range(2):
        assert run(workdir, output, photos / "other.jpg", photos / "other.jpg") == 0
    assert sorted(content(output)) == ["detections.json", "grid.png", "other.png"]
    assert capsys.readouterr().out.startswith("1 image, ")
    assert cv2.imread(str(output / "other.png")) is not None
    before = content(output)
    other = tmp_path / "other run"
    other.symlink_to(workdir)  # the same run, resolved
    assert run(other, output, photos / "other.jpg") == 0
    copied = tmp_path / "copied"
    shutil.copytree(workdir, copied)
    assert run(copied, output, photos / "other.jpg") == 1
    assert content(output) == before


def test_an_interrupted_command_can_be_repeated(workdir, photos, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(predict, "grid", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, output, photos / "other.jpg") == 130
    assert sorted(content(output)) == ["detections.json", "other.png"]  # the grid comes last
    (output / "detections.json").rename(output / "detections.jsonl")  # as if killed before
    assert run(workdir, output, photos / "other.jpg") == 0
    assert sorted(content(output)) == ["detections.json", "grid.png", "other.png"]


def test_pictures_do_not_replace_each_other(workdir, tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "a/x-2.jpg", "a/X.png", "a/grid.jpg", "a/grid-2.jpg"]
    rng = np.random.default_rng(1)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (9, 9, 3), np.uint8))
    output = tmp_path / "out"
    assert run(workdir, output, *(tmp_path / name for name in names)) == 0
    pictures = {path.stem for path in output.glob("*.png")}
    assert pictures == {"x", "x-2", "x-2-2", "X-3", "grid-2", "grid-2-2", "grid"}
    record = json.loads((output / "detections.json").read_text())
    assert [image["file_name"] for image in record["images"]] == [str(tmp_path / n) for n in names]


def test_pictures_of_a_split_are_named_by_whole_ids():
    """An id has no suffix: Roboflow's end with .rf.HASH, and all would get the same name."""
    ids = ["valid/a_jpg.rf.01", "valid/a_jpg.rf.02", "naïve.v2", "cam1/f", "cam2/f", "photo.JPG"]
    names = ["a_jpg.rf.01", "a_jpg.rf.02", "naïve.v2", "f", "f-2", "photo"]
    assert inputs.unique_stems(ids, ["grid"]) == names
    stems = inputs.unique_stems([f"{i}/f.jpg" for i in range(3000)], [])
    assert stems[-1] == "f-3000"


def expected(workdir, names):
    """What the Python interface finds: rows (file, class, score, xmin, ymin, xmax, ymax)."""
    detector = scratchdet_jax.load(f"{workdir}@latest")
    return [
        (str(name), c, score, *box)
        for name, found in zip(names, detector(names, 0), strict=True)
        for c, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]


def assert_rows(rows, wanted):
    assert [row[:2] for row in rows] == [row[:2] for row in wanted]
    assert len(wanted) > 2
    numbers = [[float(value) for value in row[2:]] for row in rows]
    np.testing.assert_allclose(numbers, [row[2:] for row in wanted], atol=0.002)


def test_the_formats_hold_what_the_python_interface_finds(workdir, photos, tmp_path):
    names = [photos / "holiday.png", photos / "other.jpg"]
    wanted = expected(workdir, names)
    options = ("--threshold=0", "--no-pictures")
    for kind in ("coco", "csv", "voc"):
        assert run(workdir, tmp_path / kind, photos, *options, f"--format={kind}") == 0

    assert sorted(content(tmp_path / "coco")) == ["detections.json"]
    record = COCO(tmp_path / "coco/detections.json")
    files = {i["id"]: i["file_name"] for i in record.loadImgs(record.getImgIds())}
    assert list(files.values()) == [str(name) for name in names]
    assert {(i["width"], i["height"]) for i in record.imgs.values()} == {(60, 40)}
    rows = []
    for a in record.loadAnns(record.getAnnIds()):
        x, y, width, height = a["bbox"]
        category = record.loadCats(a["category_id"])[0]["name"]
        rows.append((files[a["image_id"]], category, a["score"], x, y, x + width, y + height))
    assert_rows(rows, wanted)
    assert len(record.loadRes(record.dataset["annotations"]).anns) == len(wanted)

    with (tmp_path / "csv/detections.csv").open(newline="") as file:
        header, *rows = map(tuple, csv.reader(file))
    assert header == ("image", "class", "score", "xmin", "ymin", "xmax", "ymax")
    assert_rows(rows, wanted)

    assert sorted(content(tmp_path / "voc")) == [
        "comp4_det_images_cat.txt", "comp4_det_images_dog.txt"
    ]  # fmt: skip
    found = read_voc_files(tmp_path / "voc", "images", ("cat", "dog"))
    assert set(found) == {"holiday", "other"}
    assert sum(len(one.scores) for one in found.values()) == len(wanted)


@pytest.mark.parametrize("kind", ["csv", "voc"])
def test_files_that_cannot_be_marked_are_replaced_only_if_asked(
    workdir, photos, tmp_path, kind, capsys
):
    assert run(workdir, tmp_path / "out", photos, f"--format={kind}") == 0
    before = content(tmp_path / "out")
    assert run(workdir, tmp_path / "out", photos, f"--format={kind}") == 1
    assert " exists: choose another place, remove it, or add --overwrite" in capsys.readouterr().err
    assert content(tmp_path / "out") == before
    assert run(workdir, tmp_path / "out", photos, f"--format={kind}", "--overwrite") == 0
    assert content(tmp_path / "out") == before


def test_thresholds_of_classes(workdir, photos, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--no-pictures", photos)
    assert run(workdir, out, "--threshold=1", "--threshold=dog=0", *options) == 0
    record = json.loads((out / "detections.json").read_text())
    assert {a["category_id"] for a in record["annotations"] if a["score"] < 1} <= {2}
    for text, problem in (
        ("cow=0.5", "names the class 'cow'"),
        ("dog=high", "is neither a number nor CLASS=NUMBER, such as 0.5 or cat=0.5"),
        ("2", "must be a number from 0 to 1"),
    ):
        assert run(workdir, out, f"--threshold={text}", *options) == 1
        assert problem in capsys.readouterr().err


def test_folders_and_globs(photos, tmp_path):
    for name in ("sub/deep/a.JPG", ".hidden/b.jpg", ".c.jpg", "out/d.jpg", "notes.txt"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "other.jpg", photos / name)
    marked = photos / "marked.png"
    outputs.save_png(marked, np.zeros((4, 4, 3), np.uint8), f"{inputs.MARK} 0123")
    here = [f"{photos}/{name}" for name in ("holiday.png", "other.jpg", "sub/deep/a.JPG")]
    assert inputs.find_files([str(photos)], photos / "out") == here
    everything = sorted([*here, f"{photos}/out/d.jpg"])
    assert sorted(inputs.find_files([f"{photos}/**/*.[jJ]*", str(photos)], photos)) == everything
    assert inputs.find_files([str(marked), str(marked)], photos) == [str(marked)]  # asked for
    (photos / "[1].jpg").write_bytes(b"")
    assert inputs.find_files([f"{photos}/[1].jpg"], photos) == [f"{photos}/[1].jpg"]
    (tmp_path / "empty").mkdir()
    for argument, problem in (
        (f"{photos}/*.gif", r"there is no image .*gif: name"),
        (f"{photos}/none.jpg", "there is no image"),
        (str(tmp_path / "empty"), "there is no image .*empty"),
    ):
        with pytest.raises(scratchdet_jax.UserError, match=problem):
            inputs.find_files([argument], photos)


def test_broken_files_are_named_at_the_end_and_stop_nothing(workdir, photos, tmp_path, capsys):
    (photos / "a.jpg").write_bytes(b"")
    (photos / "m.mp4").write_bytes(b"no video")
    (photos / "p.jpg").write_text("no image")
    (photos / "z.jpg").symlink_to("nowhere.jpg")
    assert run(workdir, tmp_path / "out", photos) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("2 images, ")
    lines = printed.err[printed.err.index("error:") :].splitlines()  # after those of the progress
    assert lines[0] == "error: 4 files could not be used:"
    assert len(lines) == 5
    for text in (
        f"{photos}/a.jpg cannot be decoded as an image",
        f"{photos}/m.mp4 cannot be decoded as a video",
        f"{photos}/p.jpg cannot be decoded as an image",
        f"there is no image {photos}/z.jpg",
    ):
        assert sum(text in line for line in lines) == 1
    assert {"holiday.png", "other.png", "detections.json"} == set(content(tmp_path / "out"))


def test_no_grid_beyond_a_limit(workdir, photos, tmp_path):
    for number in range(outputs.GRID_LIMIT):
        shutil.copy(photos / "other.jpg", photos / f"{number}.jpg")
    names = sorted(photos.iterdir())
    assert run(workdir, tmp_path / "few", *names[: outputs.GRID_LIMIT]) == 0
    assert (tmp_path / "few/grid.png").exists()
    assert run(workdir, tmp_path / "many", *names) == 0
    assert len(list((tmp_path / "many").glob("*.png"))) == len(names)
    assert not (tmp_path / "many/grid.png").exists()


@pytest.fixture
def video(tmp_path):
    """Eleven frames of 64 × 48 pixels at 10 frames/s that become brighter."""
    path, rng = tmp_path / "clip.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(11):
        writer.write(rng.integers(20 * number, 20 * number + 40, (48, 64, 3), np.uint8))
    writer.release()
    return path


def test_an_annotated_video(workdir, photos, video, tmp_path):
    out = tmp_path / "out"
    assert run(workdir, out, video, photos / "other.jpg") == 0
    assert sorted(content(out)) == ["clip.mp4", "detections.json", "other.png"]
    record = json.loads((out / "detections.json").read_text())
    names = [image["file_name"] for image in record["images"]]
    assert names == [*(f"{video}#{number}" for number in range(11)), str(photos / "other.jpg")]
    made = cv2.VideoCapture(str(out / "clip.mp4"))
    assert made.get(cv2.CAP_PROP_FPS) == 10
    frames = [made.read()[1] for _ in range(11)]
    assert not made.read()[0]
    assert frames[0].shape == (288, 384, 3)  # enlarged as a picture is
    assert np.median(frames[10]) > np.median(frames[0]) + 100  # where no box is drawn
    before = content(out)
    assert run(workdir, out, video) == 1
    assert content(out) == before


def test_frames_of_a_video(workdir, video, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert run(workdir, out, "--frames", video) == 0
    assert sorted(p.name for p in out.iterdir()) == ["clip", "detections.json"]
    assert sorted(content(out / "clip")) == [f"{number:06d}.png" for number in range(11)]
    cv2.imwrite(str(out / "clip/mine.png"), np.zeros((4, 4, 3), np.uint8))
    capsys.readouterr()
    assert run(workdir, out, "--frames", video) == 1
    assert "mine.png exists and was not written by this command" in capsys.readouterr().err


def test_a_video_that_is_cut_off_is_named(workdir, video, tmp_path, capsys):
    content_of = video.read_bytes()
    video.write_bytes(content_of[: len(content_of) * 6 // 10])
    assert run(workdir, tmp_path / "out", video, "--no-pictures") == 1
    assert "clip.avi" in (error := capsys.readouterr().err) and "frames can be decoded" in error


def test_a_killed_run_leaves_the_finished_images(workdir, photos, tmp_path, monkeypatch):
    written = []
    add = outputs._Coco.add

    def stop(self, item, found):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(item.name)
        add(self, item, found)

    monkeypatch.setattr(outputs._Coco, "add", stop)
    assert run(workdir, tmp_path / "out", photos) == 130
    lines = (tmp_path / "out/detections.jsonl").read_text().splitlines()
    head, image = map(json.loads, lines)
    assert [category["name"] for category in head["categories"]] == ["cat", "dog"]
    assert image["file_name"] == written[0] == str(photos / "holiday.png")
    assert all(len(entry["bbox"]) == 4 for entry in image["detections"])
