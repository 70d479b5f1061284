"""The doctor on a hand-made data set with known defects."""

import html.parser
import json
import re

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from scratchdet_jax.datasets.writing import write_dataset
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import doctor

CAT, DOG, BIRD = 0, 1, 2
HOSTILE = "<script>x&.jpg"
LARGE, SMALL = (0.1, 0.1, 0.6, 0.5), (0.5, 0.5, 0.51, 0.52)
RECIPE = (
    "--config=configs/shapes.py",
    "--config.image_size=64",
    "--config.data.canvas=(64,64)",
    "--config.model.width=0.125",
    "--config.data.max_boxes=10",
    "--config.batch_size=4",
    "--config.augment.crop=true",
    "--config.augment.crop_trials=5",
)


class MadeForDoctor(tfds.core.GeneratorBasedBuilder):
    """A data set whose boxes are plain numbers, so any value can be stored."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="pets")]  # noqa: RUF012
    url_infos = None

    def __init__(self, data_dir, splits):
        self.splits = splits
        super().__init__(data_dir=str(data_dir), config="pets")

    def _info(self):
        objects = {
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "bird"]),
            "is_difficult": np.bool_,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/filename": tfds.features.Text(),
                    "image/orientation": np.int32,
                    "objects": tfds.features.Sequence(objects),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: list(enumerate(rows)) for name, rows in self.splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


def photo(seed, height=60, width=80, kind=".jpg", quality=95):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(kind, image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def example(name, image, *objects, orientation=1):
    """`objects`: (label, box[, difficult])."""
    return {
        "image": image,
        "image/filename": name,
        "image/orientation": orientation,
        "objects": [
            {"label": label, "bbox": np.float32(box), "is_difficult": flag}
            for label, box, flag in ((*o, False)[:3] for o in objects)
        ],
    }


def pets():
    rows = [(0.05 + 0.07 * i, 0.1, 0.4 + 0.05 * i, 0.5) for i in range(12)]
    broken = photo(5)
    train = [
        example(HOSTILE, photo(1), (CAT, LARGE), (DOG, (-0.2, 0.2, 0.5, 0.4)), (CAT, SMALL)),
        example("empty.png", photo(2, kind=".png")),
        example("hard.jpg", photo(3), (DOG, LARGE, True)),
        example(
            "boxes.jpg",
            photo(4),
            (CAT, LARGE),
            (CAT, LARGE),
            (DOG, LARGE),
            (CAT, (0.5, 0.1, 0.5, 0.4)),
            (CAT, (0.6, 0.1, 0.3, 0.4)),
            (-1, (0.2, 0.2, 0.9, 0.9)),
        ),
        example("broken.jpg", broken[: len(broken) // 2], (CAT, LARGE)),
        example("garbage.jpg", b"no image at all", (CAT, LARGE)),
        example("crowd.jpg", photo(6, 120, 90), *((CAT, row) for row in rows)),
        example("turned.jpg", photo(7, 40, 90), (DOG, LARGE), orientation=6),
    ]
    held_out = [
        example("copy.jpg", photo(1), (CAT, LARGE)),
        example("again.jpg", photo(6, 100, 75, quality=40), (CAT, LARGE)),
        example("own.jpg", photo(8), (CAT, LARGE)),
    ]
    return {"held_out": held_out, "train": train}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(lambda: MadeForDoctor(folder, pets()))
    return folder


@pytest.fixture(scope="module")
def examined(data_dir, tmp_path_factory):
    """The figures, page and text that the command writes."""
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *a, **k: lines.append(" ".join(map(str, a))))
        doctor.main(
            [
                "doctor",
                "made_for_doctor/pets",
                f"--data_dir={data_dir}",
                *RECIPE,
                "--samples=3",
                f"--html={folder / 'new' / 'page.html'}",
                f"--json={folder / 'numbers.json'}",
            ]
        )
    numbers = json.loads((folder / "numbers.json").read_text())
    return numbers, (folder / "new" / "page.html").read_text(encoding="utf-8"), "\n".join(lines)


def test_counts(examined):
    numbers, _, text = examined
    splits = {s["name"]: s for s in numbers["splits"]}
    assert splits["train"]["images"] == 8
    assert splits["train"]["boxes"] == [2 + 2 + 2 + 12, 1 + 1 + 1, 0]
    assert splits["train"]["ignored"] == [0, 1, 0]
    assert splits["held_out"]["boxes"] == [3, 0, 0]
    assert numbers["images"] == numbers["decoded"] == 11
    assert numbers["without_boxes"] == {"count": 1, "examples": ["train/empty.png"]}
    assert numbers["ignored_only"] == {"count": 1, "examples": ["train/hard.jpg"]}
    assert numbers["too_many_boxes"] == {"count": 1, "examples": ["train/crowd.jpg"]}
    assert numbers["most_boxes"] == 12
    assert numbers["crowded"][0][1:] == ["train/crowd.jpg", 12]
    assert re.search(r"boxes +3 \(0\) +21 \(1\)", text)


def test_image_sizes_are_as_displayed(examined):
    sizes = examined[0]["sizes"]
    assert [90, 40, 1] in sizes["common"]  # stored as 40 × 90, rotated by 90°
    assert sizes["turned"] == 1
    assert sizes["largest"] == [120, 90]
    assert sizes["reduced"] == 1.0


def test_defects_of_stored_boxes_are_found(examined):
    defects = examined[0]["defects"]
    counts = {kind: named["count"] for kind, named in defects.items()}
    assert counts == {
        "reaches out of the image": 1,
        "no area": 1,
        "swapped corners": 1,
        "no class": 1,
        "the same box twice": 1,
        "the same box twice, of two classes": 1,
    }
    assert defects["swapped corners"]["examples"][0].startswith("train/boxes.jpg, box 5")


def test_images_that_cannot_be_decoded_are_named(examined):
    broken = examined[0]["undecodable"]
    assert broken["count"] == 2
    assert {text.partition(":")[0] for text in broken["examples"]} == {
        "train/broken.jpg",
        "train/garbage.jpg",
    }


def test_duplicates_across_splits(examined):
    numbers, _, text = examined
    (group,) = numbers["groups"]
    assert set(group["names"]) == {f"train/{HOSTILE}", "held_out/copy.jpg"}
    assert group["across_splits"]
    (pair,) = numbers["near"]
    assert set(pair["names"]) == {"train/crowd.jpg", "held_out/again.jpg"}
    assert pair["across_splits"]
    assert "held_out and train share 1 image" in text


def test_anchors(examined):
    numbers = examined[0]
    assert numbers["before"]["count"] == 25
    assert numbers["unreached"][0]["best_iou"] < 0.1
    assert numbers["unreached"][0]["file"] == f"train/{HOSTILE}"
    assert numbers["unreached"][0]["width"] == pytest.approx(64 * 0.02, rel=1e-3)
    reached = [b for b in numbers["before"]["reached_by_class"] if b is not None]
    assert len(reached) == 2  # no bird
    assert sum(numbers["before"]["home"]) == pytest.approx(1)
    assert numbers["before"]["count_by_class"] == [21, 4, 0]
    assert numbers["draws"] == 4


def test_a_constant_box_is_scored_on_the_split_for_evaluation(examined):
    """All three images of held_out have the same box."""
    numbers, page, text = examined
    found = numbers["constant_box"]
    assert (found["split"], found["label"]) == ("held_out", "VOC 11-point, IoU 0.5")
    assert found["box"]["mean"] == pytest.approx(1.0)
    assert found["box"]["boxes"] == {"cat": pytest.approx(LARGE), "dog": None, "bird": None}
    assert re.search(r"cat +1\.000 +10 % +10 % +60 % +50 %", text)
    (finding,) = [f for f in numbers["findings"] if "same place" in f["text"]]
    assert finding["severity"] == "warning"
    sentence = "in the same place on every image of held_out, scores mAP 1.00"
    assert sentence in finding["text"] and sentence in page


def test_findings_are_ranked_and_give_advice(examined):
    numbers, _, text = examined
    severities = [f["severity"] for f in numbers["findings"]]
    order = ["problem", "warning", "note"]
    assert severities == sorted(severities, key=order.index)
    all_text = " ".join(f["text"] + " " + f["advice"] for f in numbers["findings"])
    for piece in (
        "2 images cannot be decoded",
        "--config.data.max_boxes=12",
        "share 1 image, byte for byte",
        "4 stored boxes are degenerate or out of range",
        "1 class has no boxes: bird",
        "1 image (9.1 %) has no boxes",
        "1 image is rotated or mirrored",
    ):
        assert piece in all_text
    assert text.index("FINDINGS") > text.index("ANCHORS")


class Page(html.parser.HTMLParser):
    """Collects ids, links and images; checks that tags match."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.images, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "section":
            self.ids.append(attributes["id"])
        self.links += [v for k, v in attributes.items() if k in ("href", "src", "xlink:href")]
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])

    def handle_startendtag(self, tag, attributes):
        assert tag in ("path", "rect", "use", "g")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_complete_and_self_contained(examined):
    _, text, _ = examined
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.ids == [
        "findings",
        "counts",
        "sizes",
        "constant",
        "images",
        "defects",
        "duplicates",
        "crowded",
        "anchors",
        "unreached",
        "samples",
    ]
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    # 11 images: 6 most crowded, 2 pairs, and 3 samples, at most two of them broken.
    assert len(page.images) >= 6
    assert HOSTILE in "".join(page.text)
    for uri in page.images:
        assert uri.startswith("data:image/jpeg;base64,/9j/")


def test_parts_of_a_spec_are_splits_and_images_may_be_sampled(data_dir, capsys):
    spec = "made_for_doctor/pets:train[:1]+train[2:3],made_for_doctor/pets:held_out"
    doctor.main(["doctor", spec, f"--data_dir={data_dir}", *RECIPE, "--images=2"])
    text = capsys.readouterr().out
    assert re.search(r"train\[:1\] +train\[2:3\] +held_out", text)
    assert "5 images, 3 classes" in text
    assert "decoded, compared and fitted: 2 images, drawn at random" in text


def test_a_data_set_without_boxes_is_examined(tmp_path, capsys):
    rows = {"train": [example(f"{n}.jpg", photo(n)) for n in range(3)]}
    write_dataset(lambda: MadeForDoctor(tmp_path, rows))
    page = tmp_path / "page.html"
    doctor.main(
        [
            "doctor",
            "made_for_doctor/pets",
            f"--data_dir={tmp_path}",
            *RECIPE,
            "--samples=1",
            f"--html={page}",
            "--images=0",
        ]
    )
    text = capsys.readouterr().out
    assert "3 classes have no boxes: cat, dog, bird" in text
    assert "THE SAME BOX" not in text and "same place" not in text
    assert "nan" not in text.lower()
    assert "nan" not in re.sub('base64,[^"]*', "", page.read_text()).lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["made_for_doctor/pest"], "there is no data set made_for_doctor/pest"),
        (["made_for_doctor/pets:test"], "has no split 'test'"),
        (["made_for_doctor/pets", "--config.image_sice=3"], r"did you mean config\.image_size"),
        (
            ["made_for_doctor/pets", "--html=/proc/no/page.html"],
            r"--html /proc/no/page\.html cannot",
        ),
        (["made_for_doctor/pets", "--config.anchors.steps=(1,)"], "steps has length 1"),
    ],
)
def test_a_user_error_is_one_line(data_dir, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        doctor.main(["doctor", f"--data_dir={data_dir}", *RECIPE, *arguments])
    assert "\n" not in str(error.value)
