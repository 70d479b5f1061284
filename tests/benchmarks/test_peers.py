"""The data for detectors of other projects against the annotations; the table."""

import json
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import yaml

from benchmarks.peers import __main__ as peers
from benchmarks.peers import prepare
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.errors import UserError
from tests.command import exit_status
from tests.small_voc import write_voc

SPLITS = {
    "train": {"a": [("cat", (1, 1, 40, 60)), ("dog", (30, 20, 160, 120))], "b": []},
    "val": {"c": [("dog", (11, 21, 50, 90))]},
}


@pytest.fixture
def exported(tmp_path):
    write_voc(tmp_path / "photos", SPLITS)
    prepare_voc_folder(tmp_path / "photos", tmp_path / "data", "small")
    command = ["voc_folder/small", f"--data_dir={tmp_path / 'data'}"]
    assert exit_status(prepare.main, *command, f"--output={tmp_path / 'out'}") == 0
    return tmp_path / "out"


def written_boxes(folder, image_id):
    """(class name, xmin, ymin, xmax, ymax) as the XML file has them."""
    root = ElementTree.parse(folder / f"Annotations/{image_id}.xml").getroot()
    for item in root.iter("object"):
        corners = [int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        yield item.findtext("name"), *corners


@pytest.mark.parametrize("split", SPLITS)
def test_both_formats_hold_the_boxes_of_the_annotations(exported, split):
    photos = exported.parent / "photos"
    content = json.loads((exported / f"{split}.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    data = yaml.safe_load((exported / "data.yaml").read_text())
    assert data["names"] == list(names.values())
    for image_id in SPLITS[split]:
        (image,) = (entry for entry in content["images"] if entry["id"] == image_id)
        path = exported / data[split] / image["file_name"]
        assert cv2.imread(str(path)).shape[:2] == (image["height"], image["width"]) == (120, 160)
        expected = list(written_boxes(photos, image_id))
        boxes = [item for item in content["annotations"] if item["image_id"] == image_id]
        for item, (name, left, top, right, bottom) in zip(boxes, expected, strict=True):
            assert names[item["category_id"]] == name
            np.testing.assert_allclose(
                item["bbox"], (left, top, right - left, bottom - top), atol=1e-4
            )
            assert item["area"] == pytest.approx((right - left) * (bottom - top), rel=1e-5)
        label = exported / "labels" / split / f"{image_id}.txt"
        lines = [line.split() for line in label.read_text().splitlines()]
        for line, (name, left, top, right, bottom) in zip(lines, expected, strict=True):
            assert data["names"][int(line[0])] == name
            centre = ((left + right) / 320, (top + bottom) / 240)
            size = ((right - left) / 160, (bottom - top) / 120)
            np.testing.assert_allclose([float(x) for x in line[1:]], (*centre, *size), atol=1e-6)


def test_an_ignored_box_is_refused(tmp_path):
    write_voc(tmp_path / "photos", SPLITS)
    file = tmp_path / "photos/Annotations/c.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    prepare_voc_folder(tmp_path / "photos", tmp_path / "data", "small")
    source = prepare.DetectionSource("voc_folder/small:val", tmp_path / "data")
    with pytest.raises(UserError, match=r"c\.jpg.*difficult or crowd"):
        prepare.write_split(source, "val", tmp_path / "out")


def test_the_table_scores_what_is_finished(exported, tmp_path):
    content = json.loads((exported / "val.json").read_text())
    perfect = [{**item, "score": 0.9} for item in content["annotations"]]
    wrong = [{**item, "bbox": [0, 0, 3, 3]} for item in perfect]
    for name, found in (("yolo11n", perfect), ("ssd300_vgg16", wrong)):
        (exported / name).mkdir()
        (exported / name / "detections.json").write_text(json.dumps(found))
        summary = {"images": 4000, "parameters": 2_590_000, "minutes": 20.0}
        (exported / name / "summary.json").write_text(json.dumps(summary))
    lines = peers.table(tmp_path, exported).splitlines()
    assert lines[2:] == [
        f"| {peers.TITLES['yolo11n']} | 1.000 | 1.000 | 4,000 | 2.6 M | 20.0 |",
        f"| {peers.TITLES['ssd300_vgg16']} | 0.000 | 0.000 | 4,000 | 2.6 M | 20.0 |",
    ]
