import json
import math

import numpy as np
import pytest

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import ImageDetections
from scratchdet_jax.tools import score
from tests.command import exit_status

# xmin, ymin, xmax, ymax as the devkit writes them.
OBJECTS = {
    "000001": [("cat", (10, 20, 60, 90), 0), ("dog", (100, 20, 160, 90), 0)],
    "000002": [("cat", (30, 40, 80, 120), 0), ("cat", (120, 40, 180, 120), 1)],
    "000003": [],
}


def write_devkit(root, objects=OBJECTS, split="val"):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(objects) + "\n")
    for name, rows in objects.items():
        body = "".join(
            f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox>"
            f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
            "</bndbox></object>"
            for kind, box, difficult in rows
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename>"
            f"<size><width>200</width><height>150</height><depth>3</depth></size>{body}"
            "</annotation>"
        )
    return root


def write_detections(folder, **lines):
    folder.mkdir(exist_ok=True)
    for kind, text in lines.items():
        (folder / f"comp4_det_val_{kind}.txt").write_text(text)
    return folder


PERFECT = {
    "cat": "000002 0.9 120 40 180 120\n000001 0.8 10 20 60 90\n000002 0.7 30 40 80 120\n",
    "dog": "000001 0.9 100 20 160 90\n",
}


@pytest.fixture
def devkit(tmp_path):
    return write_devkit(tmp_path / "VOC2007")


def run_voc(devkit, folder, *more):
    arguments = ["voc", f"--devkit={devkit}", "--split=val", f"--detections={folder}"]
    return exit_status(score.main, *arguments, *more)


def test_voc_table_and_json(tmp_path, devkit, capsys):
    folder = write_detections(tmp_path / "found", **PERFECT)
    assert run_voc(devkit, folder, f"--json={tmp_path / 'out' / 's.json'}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["cat", "1.0000", "2", "3"],
        ["dog", "1.0000", "1", "1"],
        ["mean", "1.0000", "3", "4"],
    ]
    record = json.loads((tmp_path / "out" / "s.json").read_text())
    assert record["metric"] == "voc_11point" and record["mAP"] == 1.0
    assert record["AP"] == {"cat": 1.0, "dog": 1.0}


def test_voc_metric_is_chosen(tmp_path, devkit, capsys):
    folder = write_detections(
        tmp_path / "found", cat="000003 0.9 1 1 50 50\n000001 0.8 10 20 60 90\n", dog=PERFECT["dog"]
    )
    values = {}
    for metric in ("11point", "area"):
        assert run_voc(devkit, folder, f"--metric={metric}", f"--json={tmp_path}/{metric}") == 0
        values[metric] = json.loads((tmp_path / metric).read_text())["AP"]["cat"]
    # Half the cats at precision 0.5: six of the eleven points, and half the area.
    assert values == pytest.approx({"11point": 6 / 11 * 0.5, "area": 0.25})


def test_voc_class_without_a_file_is_noted_and_scores_zero(tmp_path, devkit, capsys):
    folder = write_detections(tmp_path / "found", cat=PERFECT["cat"])
    assert run_voc(devkit, folder) == 0
    output = capsys.readouterr()
    assert "comp4_det_val_dog.txt" in output.err
    assert ["dog", "0.0000", "1", "0"] in [line.split() for line in output.out.splitlines()]


def test_voc_class_without_ground_truth_is_left_out(tmp_path, devkit, capsys):
    folder = write_detections(tmp_path / "found", **PERFECT, sheep="000001 0.9 1 2 3 4\n")
    assert run_voc(devkit, folder, f"--json={tmp_path / 's.json'}") == 0
    assert "not in the mean, for lack of ground truth: sheep" in capsys.readouterr().out
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["AP"]["sheep"] is None and record["mAP"] == 1.0


def test_voc_of_our_own_files(tmp_path, devkit, capsys):
    box = np.array([[20.0, 10.0, 90.0, 60.0]])
    found = {"000001": ImageDetections(box, np.array([0.5]), np.array([1]))}
    voc.write_detections(tmp_path / "found", found, ("cat", "dog"), "val")
    assert run_voc(devkit, tmp_path / "found", "--metric=area") == 0
    assert ["cat", "0.5000", "2", "1"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("000001 0.8 10 20 60\n", "comp4_det_val_cat.txt, line 1"),
        ("000001 nan 10 20 60 90\n", "not finite"),
        ("000009 0.8 10 20 60 90\n", "'000009'"),
    ],
)
def test_voc_bad_detections(tmp_path, devkit, capsys, lines, message):
    folder = write_detections(tmp_path / "found", cat=lines, dog="")
    assert run_voc(devkit, folder) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_voc_missing_folders_and_split(tmp_path, devkit, capsys):
    folder = write_detections(tmp_path / "found", **PERFECT)
    assert run_voc(tmp_path / "none", folder) == 1
    assert "none" in capsys.readouterr().err
    assert run_voc(devkit, tmp_path / "nothing") == 1
    assert "nothing" in capsys.readouterr().err
    assert run_voc(devkit, folder, "--split=test") == 1
    assert "test" in capsys.readouterr().err
    (devkit / "Annotations" / "000002.xml").unlink()
    assert run_voc(devkit, folder) == 1
    assert "000002" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotation>", "<annotation><object>", "cannot be read"),
        ("<xmin>10</xmin>", "<xmin>ten</xmin>", "object 1 (cat)"),
        ("<xmin>10</xmin>", "", "has no xmin"),
        ("<difficult>0</difficult>", "<difficult>maybe</difficult>", "difficult"),
        ("</bndbox>", "</bndbox><bndbox/>", "object 1 (cat) has 2 <bndbox>"),
    ],
)
def test_voc_bad_annotation(tmp_path, devkit, capsys, old, new, message):
    path = devkit / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace(old, new, 1))
    assert run_voc(devkit, write_detections(tmp_path / "found", **PERFECT)) == 1
    error = capsys.readouterr().err
    assert "000001.xml" in error and message in error and error.count("\n") == 1


def test_voc_other_flags_than_difficult_are_not_read(tmp_path, devkit, capsys):
    path = devkit / "Annotations" / "000001.xml"
    flags = ("<truncated>0.0597</truncated>", "<truncated>Unspecified</truncated>")
    text = path.read_text()
    for kind, flag in zip(("cat", "dog"), flags, strict=True):
        text = text.replace(f"<name>{kind}</name>", f"<name>{kind}</name>{flag}")
    path.write_text(text)
    assert run_voc(devkit, write_detections(tmp_path / "found", **PERFECT)) == 0
    assert ["mean", "1.0000", "3", "4"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_voc_swapped_corners_are_put_in_order(tmp_path, devkit, capsys):
    path = devkit / "Annotations" / "000001.xml"
    swapped = path.read_text().replace("<xmin>10<", "<xmin>60<").replace("<xmax>60<", "<xmax>10<")
    path.write_text(swapped)
    assert run_voc(devkit, write_detections(tmp_path / "found", **PERFECT)) == 0
    assert ["mean", "1.0000", "3", "4"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


ANNOTATIONS = {
    "images": [{"id": 7}, {"id": 8}],
    "categories": [{"id": 13, "name": "stop sign"}, {"id": 11, "name": "hydrant"}],
    "annotations": [{"image_id": 7, "category_id": 13, "bbox": [10, 10, 50, 50]}],
}


def run_coco(folder, results, annotations=ANNOTATIONS, *more):
    (folder / "a.json").write_text(json.dumps(annotations))
    (folder / "r.json").write_text(json.dumps(results))
    files = [f"--annotations={folder / 'a.json'}", f"--detections={folder / 'r.json'}"]
    return exit_status(score.main, "coco", *files, *more)


def result(**changes):
    return {"image_id": 7, "category_id": 13, "bbox": [10, 10, 50, 50], "score": 0.5, **changes}


def test_coco_table_and_json(tmp_path, capsys):
    assert run_coco(tmp_path, [result()], ANNOTATIONS, f"--json={tmp_path / 's.json'}") == 0
    rows = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert rows[1:4] == [["hydrant", "–"], ["stop sign", "1.0000"], ["mean", "1.0000"]]
    assert ["AP75", "1.0000"] in rows
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["metric"] == "coco" and record["APs"] is None
    assert math.isclose(record["mAP"], 1) and math.isclose(record["AR100"], 1)
    assert record["AP"] == {"hydrant": None, "stop sign": pytest.approx(1.0)}


def test_coco_without_detections(tmp_path, capsys):
    assert run_coco(tmp_path, []) == 0
    assert ["mean", "0.0000"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_coco_of_our_own_file(tmp_path, capsys):
    found = {"7": ImageDetections(np.array([[10.0, 10, 60, 60]]), np.ones(1), np.array([2]))}
    coco.write_results(tmp_path / "own.json", found, (11, 13))
    assert run_coco(tmp_path, json.loads((tmp_path / "own.json").read_text())) == 0
    assert ["mean", "1.0000"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([result(image_id=9)], "'9'"),
        ([result(category_id=12)], "category id 12"),
        ([result(), result(score=math.nan)], "detections[1]"),
        ({"a": 1}, "must be a list"),
    ],
)
def test_coco_bad_results(tmp_path, capsys, results, message):
    assert run_coco(tmp_path, results) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_coco_missing_file(tmp_path, capsys):
    files = ["--annotations=/none.json", "--detections=/none.json"]
    assert exit_status(score.main, "coco", *files) == 1
    assert "/none.json does not exist" in capsys.readouterr().err
