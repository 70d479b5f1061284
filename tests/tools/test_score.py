import json
import math

import cv2
import numpy as np
import pytest

from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.datasets.report import defect_lines
from scratchdet_jax.evaluation import formats
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
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(objects) + "\n")
    for name, rows in objects.items():
        body = "".join(
            f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox>"
            f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
            "</bndbox></object>"
            for kind, box, difficult in rows
        )
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
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
        ["mAP@.5:.95", "1.0000"],
    ]
    record = json.loads((tmp_path / "out" / "s.json").read_text())
    assert record["metric"] == "voc_11point" and record["mAP"] == 1.0
    assert record["AP"] == {"cat": 1.0, "dog": 1.0}
    assert math.isclose(record["mAP@.5:.95"], 1)


def test_voc_beside_cocos_map(tmp_path, devkit, capsys):
    """A box of IoU 0.64 is right for VOC, and for COCO at 0.5, 0.55 and 0.6 of ten thresholds."""
    loose = write_detections(
        tmp_path / "found", cat=PERFECT["cat"], dog="000001 0.9 100 20 160 64.8\n"
    )
    assert run_voc(devkit, loose, f"--json={tmp_path / 's.json'}") == 0
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["mAP"] == 1.0
    assert math.isclose(record["mAP@.5:.95"], (1 + 3 / 10) / 2)
    assert ["mAP@.5:.95", "0.6500"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_voc_without_ground_truth_has_no_cocos_map(tmp_path, capsys):
    devkit = write_devkit(tmp_path / "VOC2007", {"000003": []})
    folder = write_detections(tmp_path / "found", cat="000003 0.9 1 1 50 50\n")
    assert run_voc(devkit, folder, f"--json={tmp_path / 's.json'}") == 0
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["mAP"] is None and record["mAP@.5:.95"] is None
    assert ["mAP@.5:.95", "–"] in [line.split() for line in capsys.readouterr().out.splitlines()]


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
    formats.write_voc(tmp_path / "found", found, ("cat", "dog"), "val")
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


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (None, None, ("image without annotation", "000001")),
        ("<annotation>", "<annotation><object>", ("annotation that cannot be read", "000001.xml")),
        ("<xmin>10</xmin>", "<xmin>ten</xmin>", ("object that cannot be read", "object 1 (cat)")),
        ("<xmin>10</xmin>", "", ("object that cannot be read", "has no xmin")),
        ("<xmin>10</xmin>", "<xmin>60</xmin>", ("box without area", "object 1 (cat)")),
        (
            "<difficult>0</difficult>",
            "<difficult>maybe</difficult>",
            ("flag that cannot be read (taken as 0)", "'maybe'"),
        ),
        ("</bndbox>", "</bndbox><bndbox/>", ("not where VOC has them", "object 1 (cat) has 2")),
        ("<xmin>10</xmin>", "<XMIN>10</XMIN>", ("other tags than VOC's", "<XMIN> for <xmin>")),
    ],
)
def test_voc_defects_are_reported_as_by_prepare_and_refused_by_strict(
    tmp_path, devkit, capsys, old, new, messages
):
    path = devkit / "Annotations" / "000001.xml"
    text = path.read_text()
    path.unlink()
    if old is not None:
        path.write_text(text.replace(old, new, 1))
    folder = write_detections(tmp_path / "found", **PERFECT)
    assert run_voc(devkit, folder) == 0
    error = capsys.readouterr().err
    assert f"{devkit}: 1 defect\n  1 × " in error
    assert all(message in error for message in messages) and "Traceback" not in error
    assert run_voc(devkit, folder, "--strict") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"error: {devkit} has 1 defect, which --strict does not allow: nothing was scored"
    )


def test_voc_an_image_that_is_left_out_has_no_false_positives(tmp_path, devkit, capsys):
    (devkit / "Annotations" / "000001.xml").unlink()
    folder = write_detections(tmp_path / "found", cat=PERFECT["cat"])
    assert run_voc(devkit, folder, f"--json={tmp_path / 's.json'}") == 0
    assert json.loads((tmp_path / "s.json").read_text())["AP"] == {"cat": 1.0}
    assert "detections in images left out are not scored: 1 image" in capsys.readouterr().err


def test_voc_subfolders(tmp_path, capsys):
    objects = {"cam1/f1": OBJECTS["000001"], "cam2/f1": OBJECTS["000002"]}
    root = tmp_path / "set"
    write_devkit(root, objects)
    folder = write_detections(
        tmp_path / "found",
        cat="cam2/f1 0.9 120 40 180 120\ncam1/f1 0.8 10 20 60 90\ncam2/f1 0.7 30 40 80 120\n",
        dog="cam1/f1 0.9 100 20 160 90\n",
    )
    assert run_voc(root, folder) == 0
    output = capsys.readouterr()
    assert ["mean", "1.0000", "3", "4"] in [line.split() for line in output.out.splitlines()]
    assert output.err == ""


def test_voc_images_and_annotations_side_by_side(tmp_path, capsys):
    devkit = write_devkit(tmp_path / "VOC2007")
    side = tmp_path / "export" / "val"
    side.mkdir(parents=True)
    (side.parent / "train").mkdir()
    for path in (devkit / "Annotations").iterdir():
        path.rename(side / path.name)
        (side / path.with_suffix(".jpg").name).write_bytes(b"is not opened")
    (side.parent / "train" / "t.jpg").write_bytes(b"")
    (side.parent / "train" / "t.xml").write_text("<annotation/>")
    lines = {
        kind: "".join(f"val/{line}\n" for line in text.splitlines())
        for kind, text in PERFECT.items()
    }
    assert run_voc(side.parent, write_detections(tmp_path / "found", **lines)) == 0
    assert ["mean", "1.0000", "3", "4"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_voc_without_an_image_folder(tmp_path, devkit, capsys):
    (devkit / "JPEGImages").rmdir()
    assert run_voc(devkit, write_detections(tmp_path / "found", **PERFECT)) == 0
    assert "1.0000" in capsys.readouterr().out


def test_voc_a_known_class_is_not_another_split(tmp_path, capsys):
    objects = {"000001": [("hard_cat", (10, 20, 60, 90), 0), ("cat", (100, 20, 160, 90), 0)]}
    devkit = write_devkit(tmp_path / "VOC2007", objects)
    folder = write_detections(
        tmp_path / "found", cat="000001 0.9 100 20 160 90\n", hard_cat="000001 0.9 10 20 60 90\n"
    )
    assert run_voc(devkit, folder, f"--json={tmp_path / 's.json'}") == 0
    assert json.loads((tmp_path / "s.json").read_text())["AP"] == {"cat": 1.0, "hard_cat": 1.0}
    assert capsys.readouterr().err == ""


def test_voc_escaped_class_names_are_read_back(tmp_path, capsys):
    names = ("a\\b", "car/truck", "x" * 300)
    objects = {"000001": [(name, (10, 20, 60, 90), 0) for name in names]}
    devkit = write_devkit(tmp_path / "VOC2007", objects)
    box = np.array([[20.0, 10.0, 90.0, 60.0]] * 4)
    found = {"000001": ImageDetections(box, np.ones(4) / 2, np.array([1, 2, 3, 4]))}
    formats.write_voc(tmp_path / "found", found, (*names, "no/truth"), "val")
    assert run_voc(devkit, tmp_path / "found", f"--json={tmp_path / 's.json'}") == 0
    scores = json.loads((tmp_path / "s.json").read_text())["AP"]
    assert scores == {**dict.fromkeys(names, 1.0), "no/truth": None}


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
    rows = [line.strip().rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
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
    formats.write_coco(tmp_path / "own.json", found, (11, 13))
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


def coco_case(name, content):
    """The content with one fault, as tools write it, and the defect that `prepare coco` names."""
    first = content["annotations"][0]
    if name == "area":
        first["area"] = None
        return Kind.AREA
    if name == "iscrowd":
        first["iscrowd"] = None
        return Kind.FLAG
    if name == "bbox":
        del first["bbox"]
        return Kind.UNREADABLE_BOX
    if name == "negative":
        x, y, width, height = first["bbox"]
        first["bbox"] = [x + width, y, -width, height]
        return Kind.SWAPPED
    if name == "ids":
        for entry in (*content["images"], *content["annotations"]):
            entry.update({k: float(v) for k, v in entry.items() if k.endswith("id")})
        return None
    if name == "twice":
        content["images"].append(dict(content["images"][0]))
        return Kind.LISTED_TWICE
    if name == "orphan":
        content["annotations"].append({**first, "id": 99, "image_id": 77})
        return Kind.UNKNOWN_IMAGE
    if name == "class":
        content["annotations"].append({**first, "id": 99, "category_id": 77})
        return Kind.UNKNOWN_CLASS
    if name == "names":
        for category in content["categories"]:
            category["name"] = category["id"]
        return Kind.CATEGORY_NAME
    return None


def coco_set(folder, name, encoding="utf-8"):
    """Writes an annotation file with a fault and its images; returns the kind of the defect."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 10 * i + c, "image_id": i, "category_id": c, "area": 850, "iscrowd": 0}
            | {"bbox": [25 * c - 20, 6, 25, 34]}
            for i in (1, 2)
            for c in (1, 2)
        ],
    }
    kind = coco_case(name, content)
    (folder / "a.json").write_text(json.dumps(content), encoding)
    for i in (1, 2):
        picture = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), picture)
    return kind


@pytest.mark.parametrize(
    "name",
    ["good", "area", "iscrowd", "bbox", "negative", "ids", "twice", "orphan", "class", "names"],
)
def test_score_coco_takes_what_prepare_takes_in_the_same_words(tmp_path, capsys, name):
    kind = coco_set(tmp_path, name)
    report = prepare_coco_folder(
        [CocoSplit("val", tmp_path / "a.json", tmp_path)], tmp_path / "data", "mine"
    )
    capsys.readouterr()
    boxes = [[5, 6, 25, 34], [30, 6, 25, 34]]
    results = [
        {"image_id": i, "category_id": c, "bbox": boxes[int(c) - 1], "score": 0.9}
        for i in (1.0, 2)
        for c in (1, 2.0)
        if name != "bbox" or (i, c) != (1, 1)
    ]
    (tmp_path / "r.json").write_text(json.dumps(results), "utf-8-sig")
    files = [f"--annotations={tmp_path / 'a.json'}", f"--detections={tmp_path / 'r.json'}"]
    assert exit_status(score.main, "coco", *files, f"--json={tmp_path / 's.json'}") == 0
    error = capsys.readouterr().err
    assert [defect.kind for defect in report.defects][:1] == ([kind] if kind else [])
    assert ("\n".join(defect_lines(report.defects)) in error) if kind else error == ""
    figures = json.loads((tmp_path / "s.json").read_text())
    assert math.isclose(figures["mAP"], 1)
    assert list(figures["AP"]) == (["1", "2"] if name == "names" else ["cat", "dog"])
    assert exit_status(score.main, "coco", *files, "--strict") == (1 if kind else 0)
    if kind:
        assert "which --strict does not allow" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_files_with_a_byte_order_mark(tmp_path, encoding):
    coco_set(tmp_path, "good", encoding)
    (tmp_path / "r.json").write_text("[]", encoding)
    files = [f"--annotations={tmp_path / 'a.json'}", f"--detections={tmp_path / 'r.json'}"]
    assert exit_status(score.main, "coco", *files, "--strict") == 0


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "[null]",
        '[{"image_id": [], "category_id": {}, "bbox": null, "score": 1}]',
        "[" * 99999,
        f'[{{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 1{"0" * 400}], "score": 1}}]',
    ],
    ids=["number", "null", "types", "deep", "huge"],
)
def test_coco_results_never_end_in_a_traceback(tmp_path, capsys, text):
    coco_set(tmp_path, "good")
    (tmp_path / "r.json").write_text(text)
    files = [f"--annotations={tmp_path / 'a.json'}", f"--detections={tmp_path / 'r.json'}"]
    assert exit_status(score.main, "coco", *files) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
