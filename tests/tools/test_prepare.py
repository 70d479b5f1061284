import cv2
import numpy as np
import pytest

from scratchdet_jax.data.records import open_source
from scratchdet_jax.tools import prepare


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "My cells"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (path / part).mkdir(parents=True)
    picture = cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    for name in ("a", "b"):
        (path / "JPEGImages" / f"{name}.jpg").write_bytes(picture)
        boxes = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{xmax}</xmax>"
            "<ymax>9</ymax></bndbox></object>"
            for kind, xmax in (("red", 8), ("white", 9), ("red", 1))
        )
        (path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
        (path / "ImageSets" / "Main" / f"set_{name}.txt").write_text(name)
    return path


def test_voc_prints_the_report_and_prepares(folder, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["voc", f"--folder={folder}", "--name=cells", f"--data_dir={data}"]
    assert prepare.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "set_a: 1 images" in printed
    assert "2 × box without area (left out)" in printed
    assert "Annotations/b.xml: object 3 (red)" in printed
    assert "use it as voc_folder/cells:SPLIT, SPLIT being one of set_a, set_b" in printed
    source = open_source("voc_folder/cells:set_a+set_b", data)
    assert source.class_names == ("red", "white")
    assert len(source) == 2


def test_voc_takes_classes_and_splits_and_names_itself(folder, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["voc", f"--folder={folder}", f"--data_dir={data}"]
    assert prepare.main([*arguments, "--classes=white,black", "--splits=set_b"]) == 0
    assert "object of an unknown class" in capsys.readouterr().out
    source = open_source("voc_folder/my_cells:set_b", data)
    assert source.class_names == ("white", "black")
    assert source[0]["labels"].tolist() == [1]


def test_a_users_mistake_is_one_sentence_and_status_1(folder, tmp_path, capsys):
    assert prepare.main(["voc", f"--folder={tmp_path}", f"--data_dir={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "is not in VOC layout" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_shapes_goes_to_the_data_dir(monkeypatch):
    asked = []
    monkeypatch.setattr(prepare, "prepare_shapes", asked.append)
    assert prepare.main(["shapes", "--data_dir=somewhere"]) == 0
    assert prepare.main(["shapes"]) == 0
    assert asked == ["somewhere", "data"]
