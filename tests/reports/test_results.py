"""The files of an evaluation: which folder they are in, and in which order they are written."""

import json
import types

import cv2
import numpy as np
import pytest

from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import formats, saved_run
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.reports import results
from scratchdet_jax.reports.results import evaluate_run
from scratchdet_jax.run.open import SavedRun
from scratchdet_jax.tools.score import read_voc_files
from tests.tiny import tiny_config

CLASSES = ("a\\b", "car/truck", "dog")
BOX = (10, 20, 60, 90)  # xmin, ymin, xmax, ymax


def write_voc(folder, splits):
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    for split, ids in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids) + "\n")
        for image_id in ids:
            cv2.imwrite(str(folder / f"JPEGImages/{image_id}.jpg"), picture)
            corners = "".join(
                f"<{key}>{value}</{key}>"
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
            )
            objects = "".join(
                f"<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox>"
                "</object>"
                for name in CLASSES
            )
            (folder / f"Annotations/{image_id}.xml").write_text(
                "<annotation><size><width>160</width><height>120</height></size>"
                f"{objects}</annotation>"
            )
    return folder


def perfect(detector, variables, images, *_, **__):
    """The right box for each class in each image."""
    count = images.shape[0]
    box = np.array([BOX[1] / 120, BOX[0] / 160, BOX[3] / 120, BOX[2] / 160], np.float32)
    return Detections(
        np.tile(box, (count, 3, 1)),
        np.full((count, 3), 0.9, np.float32),
        np.tile(np.array([1, 2, 3], np.int32), (count, 1)),
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    splits = {"train": ["t1"], "val": ["v1", "v2"], "test": ["e1"]}
    folder = write_voc(tmp_path / "Set", splits)
    prepare_voc_folder(folder, tmp_path / "data", "mine")
    config = tiny_config(**{"data.dir": str(tmp_path / "data"), "data.eval": "voc_folder/mine:val"})
    detector = Detector(config, None, np.zeros((0, 4), np.float32), CLASSES)
    monkeypatch.setattr(Detector, "detect", perfect)
    monkeypatch.setattr(
        saved_run, "load_detector", lambda run, config: (detector._replace(config=config), {})
    )
    info = types.SimpleNamespace(config=config, class_names=CLASSES)
    (tmp_path / "run").mkdir()
    return SavedRun(tmp_path / "run", 7, info)


def overridden(run, **fields):
    config = run.info.config.copy_and_resolve_references()
    config.unlock()
    config.update_from_flattened_dict(fields)
    return config.lock()


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_all_files_are_written_whatever_the_class_names(run):
    evaluation = evaluate_run(run, run.info.config)
    folder = run.workdir / "eval"
    assert sorted(path.name for path in folder.iterdir()) == [
        "coco_results.json",
        "comp4_det_val_a%5Cb.txt",
        "comp4_det_val_car%2Ftruck.txt",
        "comp4_det_val_dog.txt",
        "results.json",
    ]
    assert results_of(folder)["AP"] == dict.fromkeys(CLASSES, 1.0)
    assert len(json.loads((folder / "coco_results.json").read_text())) == 6
    again = read_voc_files(folder, "val", CLASSES)
    assert {name: found.labels.tolist() for name, found in again.items()} == {
        name: found.labels.tolist() for name, found in evaluation.detections.items()
    }


def test_a_crowded_image_is_reported_before_anything_is_loaded_or_written(run, monkeypatch):
    monkeypatch.setattr(saved_run, "load_detector", None)
    fields = {"data.eval": "voc_folder/mine:test", "data.max_boxes": 2}
    with pytest.raises(UserError) as error:
        evaluate_run(run, overridden(run, **fields))
    assert str(error.value) == (
        "e1.jpg of config.data.eval voc_folder/mine:test has 3 boxes, more than "
        "config.data.max_boxes = 2: set it to 3 or more"
    )
    assert not list(run.workdir.iterdir())


def test_the_figures_are_written_before_the_voc_files(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "write_voc", full)
    with pytest.raises(OSError, match="No space"):
        evaluate_run(run, run.info.config)
    assert results_of(run.workdir / "eval")["mAP"] == 1.0
    assert (run.workdir / "eval/coco_results.json").is_file()


def test_other_evaluations_have_folders_of_their_own(run, capsys):
    evaluate_run(run, run.info.config)
    first = {p.name: p.read_bytes() for p in (run.workdir / "eval").iterdir()}
    test = overridden(run, **{"data.eval": "voc_folder/mine:test"})
    area = overridden(run, **{"eval.metric": "voc_area"})
    for other, config, name in (
        (run, test, "eval-voc_folder_mine_test"),
        (run, area, "eval-voc_area"),
        (run._replace(step=5, is_best=False), run.info.config, "eval-step_5"),
    ):
        evaluate_run(other, config)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"detections and results.json in {run.workdir / name}"
        record = results_of(run.workdir / name)
        assert (record["step"], record["data"], record["metric"]) == (
            other.step,
            config.data.eval,
            config.eval.metric,
        )
    assert {p.name: p.read_bytes() for p in (run.workdir / "eval").iterdir()} == first
    assert len(list(run.workdir.iterdir())) == 4


def test_the_same_evaluation_again_takes_the_same_folder(run):
    for _ in range(2):
        evaluate_run(run, run.info.config)
        evaluate_run(run, run.info.config, run.workdir / "out")
    assert sorted(path.name for path in run.workdir.iterdir()) == ["eval", "out"]


def test_results_of_an_earlier_best_checkpoint_are_replaced_and_named(run, capsys):
    for step in (7, 9):
        evaluate_run(run._replace(step=step), run.info.config)
    assert {path.name: results_of(path)["step"] for path in run.workdir.iterdir()} == {"eval": 9}
    note = "note: the results of step 7 on voc_folder/mine:val (voc_11point) in "
    assert capsys.readouterr().out.count(f"{note}{run.workdir / 'eval'} are replaced\n") == 1


def test_a_named_folder_with_other_results_is_refused(run):
    evaluate_run(run, run.info.config, run.workdir / "out")
    before = (run.workdir / "out/results.json").read_bytes()
    test = overridden(run, **{"data.eval": "voc_folder/mine:test"})
    with pytest.raises(UserError, match=r"holds the results of step 7 on voc_folder/mine:val "):
        evaluate_run(run, test, run.workdir / "out")
    assert (run.workdir / "out/results.json").read_bytes() == before
    evaluate_run(run, test, run.workdir / "out", overwrite=True)
    assert results_of(run.workdir / "out")["data"] == "voc_folder/mine:test"


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("voc_11point", "VOC 11-point, IoU 0.5"),
        ("voc_area", "VOC area, IoU 0.5"),
        ("coco", "COCO, IoU 0.5:0.95"),
    ],
)
def test_the_map_names_its_metric(run, capsys, metric, label):
    evaluate_run(run, overridden(run, **{"eval.metric": metric}), run.workdir / "out")
    results = results_of(run.workdir / "out")
    assert results["metric"] == metric and results["label"] == label
    assert results["mAP"] == pytest.approx(1.0)
    output = capsys.readouterr().out
    assert f"(2 images): mAP 1.0000 ({label})" in output
    # The pictures are the same, so a constant box is as good.
    assert (
        "for comparison, one constant box per class on every image: mAP 1.0000 "
        f"({label})\n" in output
    )
    constant = results["constant_box"]
    assert constant["mAP"] == pytest.approx(1.0) and constant["images"] == 2
    assert constant["AP"] == pytest.approx(dict.fromkeys(CLASSES, 1.0))
    place = [BOX[1] / 120, BOX[0] / 160, BOX[3] / 120, BOX[2] / 160]
    assert constant["boxes"]["dog"] == pytest.approx(place, abs=1e-3)


@pytest.mark.parametrize("metric", ["voc_11point", "voc_area"])
def test_the_map_of_voc_stands_beside_that_of_coco(run, capsys, monkeypatch, metric):
    def loose(*arguments):
        """Boxes of IoU 0.64: right at 3 of COCO's 10 thresholds."""
        found = perfect(*arguments)
        height = found.boxes[..., 2:3] - found.boxes[..., :1]
        low = found.boxes[..., :1] + 0.64 * height
        return found._replace(
            boxes=np.concatenate([found.boxes[..., :2], low, found.boxes[..., 3:]], axis=-1)
        )

    monkeypatch.setattr(Detector, "detect", loose)
    evaluate_run(run, overridden(run, **{"eval.metric": metric}), run.workdir / "out")
    results = results_of(run.workdir / "out")
    assert results["mAP"] == 1.0
    assert results["mAP@.5:.95"] == pytest.approx(0.3)
    label = results["label"]
    assert f"mAP 1.0000 ({label}), mAP@.5:.95 0.3000\n" in capsys.readouterr().out


def test_an_evaluation_that_is_not_scored_has_no_constant_box(run, capsys):
    evaluate_run(run, overridden(run, **{"eval.metric": "none"}), run.workdir / "out")
    assert "constant" not in capsys.readouterr().out
    assert "constant_box" not in results_of(run.workdir / "out")


def test_other_processes_than_the_first_do_not_score_a_constant_box(run, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("scored in another process")

    monkeypatch.setattr(results.processes, "is_first", lambda: False)
    monkeypatch.setattr(results, "constant_box", refuse)
    evaluate_run(run, run.info.config)
    assert capsys.readouterr().out == ""
