import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.choices import NO_CHOICES, Choices
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder, prepare_voc_folder
from scratchdet_jax.errors import UserError
from tests.data.voc_layout import Folder, jpeg, obj

CATEGORIES = {4: "dog", 2: "cat", 9: "car", 6: "bus"}


@pytest.fixture
def coco(tmp_path):
    """Prepares a set whose image n has n boxes of each class in the order of CATEGORIES."""
    (tmp_path / "images").mkdir()
    annotations = []
    for n in (1, 2):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(jpeg(seed=n))
        annotations += [
            {"id": 10 * n + 100 * i + k, "image_id": n, "category_id": c, "bbox": [1, 2, 20, 10]}
            for i, c in enumerate(CATEGORIES)
            for k in range(n)
        ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    split = CocoSplit("train", tmp_path / "a.json", tmp_path / "images")

    def prepare(**choices):
        return prepare_coco_folder([split], tmp_path / "data", "mine", choices=Choices(**choices))

    return prepare


def labels(tmp_path, name="coco_folder/mine:train"):
    source = DetectionSource(name, tmp_path / "data")
    return [[source.class_names[i - 1] for i in source[n]["labels"]] for n in range(len(source))]


def test_classes_are_kept_in_the_order_given(coco, tmp_path):
    report = coco(classes=("dog", "cat"))
    assert report.class_names == ("dog", "cat")
    assert report.category_ids == (4, 2)
    assert report.boxes == {"dog": 3, "cat": 3}
    assert report.notes == ["boxes of classes that were not chosen, left out: 6 (bus 3, car 3)"]
    assert report.defects == []
    assert labels(tmp_path) == [["dog", "cat"], ["dog", "dog", "cat", "cat"]]
    assert DetectionSource("coco_folder/mine:train", tmp_path / "data").category_ids == (4, 2)


def test_dropped_classes_leave_the_others_in_order(coco, tmp_path):
    report = coco(drop=("dog",))
    assert report.class_names == ("cat", "bus", "car")
    assert report.category_ids == (2, 6, 9)
    assert report.notes == ["boxes of classes that were not chosen, left out: 3 (dog 3)"]
    assert labels(tmp_path)[0] == ["cat", "car", "bus"]


def test_classes_are_renamed_and_merged(coco, tmp_path):
    report = coco(rename=(("car", "vehicle"), ("bus", "vehicle"), ("dog", "cat")))
    assert report.class_names == ("cat", "vehicle")
    assert report.category_ids == (2, 6)  # cat's own; the first of the vehicles
    assert report.boxes == {"cat": 6, "vehicle": 6}
    assert "the class bus is renamed to vehicle (3 boxes)" in report.notes
    assert labels(tmp_path)[0] == ["cat", "cat", "vehicle", "vehicle"]


def test_two_classes_can_exchange_their_names(coco, tmp_path):
    report = coco(rename=(("dog", "cat"), ("cat", "dog")))
    assert report.class_names == ("dog", "cat", "bus", "car")
    assert labels(tmp_path)[0] == ["cat", "dog", "car", "bus"]


def test_classes_and_drop_refer_to_the_new_names(coco, tmp_path):
    report = coco(rename=(("car", "vehicle"), ("bus", "vehicle")), classes=("vehicle",))
    assert report.boxes == {"vehicle": 6}
    with pytest.raises(UserError, match=r"--drop names the class 'car', which .* after --rename"):
        coco(rename=(("car", "vehicle"),), drop=("car",))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"classes": ("dgo",)}, r"--classes names the class 'dgo'.*did you mean dog\?"),
        ({"drop": ("horse",)}, r"--drop names the class 'horse'.*\(it has cat, dog, bus, car\)"),
        ({"rename": (("horse", "dog"),)}, "--rename names the class 'horse'"),
        ({"classes": ("dog",), "drop": ("dog",)}, "is in --classes and in --drop"),
        ({"rename": (("dog", "a"), ("dog", "b"))}, "'dog' two new names"),
        ({"classes": ()}, "empty or repeated"),
        ({"classes": ("dog", "dog")}, "empty or repeated"),
        ({"drop": ("dog", "cat", "car", "bus")}, "--drop leaves no class"),
    ],
)
def test_wrong_choices_are_errors_before_any_image_is_read(choices, words, coco, tmp_path):
    with pytest.raises(UserError, match=words):
        coco(**choices)
    assert not (tmp_path / "data").exists()


def test_coco_sets_are_divided_and_keep_their_ids(coco, tmp_path):
    report = coco(val=0.5, drop=("bus",))
    assert report.images == {"train": 1, "val": 1}
    ids = [
        DetectionSource(f"coco_folder/mine:{split}", tmp_path / "data").image_id(0)
        for split in ("train", "val")
    ]
    assert sorted(ids) == ["1", "2"]
    source = DetectionSource("coco_folder/mine:train+val", tmp_path / "data")
    assert source.category_ids == (2, 4, 9)
    assert len(source) == 2


def test_the_choices_belong_to_the_data_set(coco):
    report = coco(classes=("dog", "cat"))
    assert coco(classes=("dog", "cat")) == report
    with pytest.raises(UserError, match="options were not those given now"):
        coco(classes=("cat", "dog"))
    with pytest.raises(UserError, match="options were not those given now"):
        coco()


@given(
    st.builds(
        Choices,
        classes=st.none() | st.lists(st.text(), max_size=3).map(tuple),
        drop=st.lists(st.text(), max_size=3).map(tuple),
        rename=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
        val=st.floats(0, 1),
        test=st.floats(0, 1),
        divided=st.text(),
        seed=st.integers(),
    )
)
def test_a_record_holds_the_choices_and_the_default_ones_change_no_fingerprint(choices):
    stored = json.loads(json.dumps(choices.record()))
    expected = choices if choices.divides else choices._replace(seed=0)
    assert Choices.from_record(stored) == expected
    assert (choices.sign("0123") == "0123") == (not choices.record())
    assert NO_CHOICES.sign("0123") == "0123"


@pytest.fixture
def voc(tmp_path):
    folder = Folder(tmp_path / "VOC")
    folder.both("a", obj("auto"), obj("bike"), obj("cycle")).both("b", obj("auto"))

    def prepare(class_names=None, **choices):
        return prepare_voc_folder(
            folder.path, tmp_path / "data", "mine", class_names, choices=Choices(**choices)
        )

    return prepare


def test_voc_classes_are_renamed_and_dropped(voc, tmp_path):
    report = voc(rename=(("cycle", "bike"), ("auto", "car")), drop=("bike",))
    assert report.class_names == ("car",)
    assert report.boxes == {"car": 2}
    assert report.boxless == {"train": 0}
    assert labels(tmp_path, "voc_folder/mine:train") == [["car"], ["car"]]


def test_voc_classes_are_named_as_they_are_called_afterwards(voc):
    """Without a defect: `cycle` is read because it becomes `bike`."""
    report = voc(["bike"], rename=(("cycle", "bike"),))
    assert report.class_names == ("bike",)
    assert report.boxes == {"bike": 2}
    assert report.counts() == {"object of an unknown class (left out)": 2}  # auto


def test_an_unknown_voc_class_is_an_error(voc):
    with pytest.raises(UserError, match=r"--rename names the class 'bikes'.*did you mean bike\?"):
        voc(rename=(("bikes", "bike"),))
