import collections
import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.dividing import Item, assign
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.errors import UserError
from tests.data.voc_layout import Folder, obj

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


@st.composite
def sets_of_items(draw, largest_group=4):
    """Items of a few classes, some of them rare, as groups of 1 to `largest_group` images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, classes = draw(st.integers(3, 60)), draw(st.integers(1, 6))
    likely = rng.random(classes) ** 2
    items = []
    for number in range(count):
        size = int(rng.integers(1, largest_group + 1)) if rng.random() < 0.3 else 1
        shown = collections.Counter()
        for _ in range(size):
            shown.update([f"c{c}" for c in range(classes) if rng.random() < likely[c]] or [""])
        items.append(Item(f"image {number}", size, dict(shown)))
    return items


def images_in(items, places):
    counts = dict.fromkeys(SHARES, 0)
    for item, place in zip(items, places, strict=True):
        counts[place] += item.images
    return counts


def imbalance(items, places, shares):
    """How far the images of each class are from their shares, summed: a slow measure."""
    total = 0.0
    for name in {name for item in items for name in item.classes}:
        of_class = sum(item.classes.get(name, 0) for item in items)
        for split, share in shares.items():
            there = sum(
                item.classes.get(name, 0)
                for item, place in zip(items, places, strict=True)
                if place == split
            )
            total += abs(there - share * of_class) / of_class
    return total


@settings(deadline=None, max_examples=100)
@given(sets_of_items(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_it_is_a_partition_that_depends_only_on_the_contents(items, seed, random):
    places = assign(items, SHARES, seed)
    assert len(places) == len(items)
    assert set(places) == set(SHARES)  # none is empty
    order = list(range(len(items)))
    random.shuffle(order)
    again = assign([items[i] for i in order], dict(SHARES), seed)
    assert again == [places[i] for i in order]


@settings(deadline=None, max_examples=100)
@given(sets_of_items(), st.sampled_from([{"train": 0.8, "val": 0.2}, SHARES]))
def test_the_shares_are_kept_within_two_of_the_largest_items(items, shares):
    counts = images_in(items, assign(items, shares, 0))
    total, largest = sum(counts.values()), max(item.images for item in items)
    for split, share in shares.items():
        # One item in proportion, one that was moved so that no split is empty.
        assert abs(counts[split] - share * total) <= 2 * max(largest, 2)


def test_classes_are_balanced_better_than_at_random():
    rng = np.random.default_rng(0)
    ours, chance = [], []
    for trial in range(30):
        likely = rng.random(5) ** 2
        items = [
            Item(f"{n}", 1, {f"c{c}": 1 for c in range(5) if rng.random() < likely[c]} or {"": 1})
            for n in range(int(rng.integers(10, 80)))
        ]
        ours.append(imbalance(items, assign(items, SHARES, trial), SHARES))
        sizes = images_in(items, assign(items, SHARES, trial))
        places = [split for split, count in sizes.items() for _ in range(count)]
        draws = [imbalance(items, rng.permutation(places).tolist(), SHARES) for _ in range(20)]
        chance.append(np.mean(draws))
        assert ours[-1] <= chance[-1]
    assert np.mean(ours) < 0.7 * np.mean(chance)


def test_a_rare_class_is_spread_and_not_lost_to_chance():
    items = [Item(f"{n}", 1, {"common": 1}) for n in range(95)]
    items += [Item(f"rare {n}", 1, {"common": 1, "rare": 1}) for n in range(5)]
    for seed in range(20):
        places = assign(items, {"train": 0.8, "val": 0.2}, seed)
        assert places[95:].count("val") == 1


def test_another_seed_divides_differently():
    items = [Item(f"{n}", 1, {"c": 1}) for n in range(50)]
    found = {tuple(assign(items, SHARES, seed)) for seed in range(10)}
    assert len(found) == 10
    assert all(images_in(items, places) == {"train": 35, "val": 10, "test": 5} for places in found)


def test_no_split_is_empty():
    for seed in range(10):
        items = [Item(f"{n}", 1, {"c": 1} if n < 2 else {"": 1}) for n in range(6)]
        places = assign(items, {"train": 0.9, "val": 0.05, "test": 0.05}, seed)
        assert set(places) == {"train", "val", "test"}


def test_a_large_group_goes_to_train_and_val_is_not_empty():
    items = [Item("film", 90, {"c": 90}), *(Item(f"{n}", 1, {"c": 1}) for n in range(10))]
    places = assign(items, {"train": 0.8, "val": 0.2}, 0)
    assert places[0] == "train"
    assert places[1:] == ["val"] * 10


def test_too_few_different_images_are_an_error():
    with pytest.raises(UserError, match="12 images cannot be divided into train and val: all are"):
        assign([Item("a", 12, {"c": 12})], {"train": 0.8, "val": 0.2}, 0)
    with pytest.raises(UserError, match="they are 2 groups of near-duplicates"):
        assign([Item("a", 2, {}), Item("b", 1, {})], SHARES, 0)


def photo(seed, quality=90, scale=1):
    """A picture that differs clearly from those of other seeds, as a JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    pixels = cv2.resize(noise, (60 * scale, 40 * scale), interpolation=cv2.INTER_CUBIC)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """30 photos, each of the first five also re-encoded and copied."""
    folder = Folder(tmp_path / "Photos")
    for n in range(30):
        folder.both(f"p{n:02}", obj("dog" if n % 3 else "cat")).image(f"p{n:02}", photo(n))
    for n in range(5):
        folder.both(f"copy{n}").image(f"copy{n}", photo(n))
        folder.both(f"smaller{n}").image(f"smaller{n}", photo(n, quality=60))
    return folder


def ids(tmp_path, split):
    source = DetectionSource(f"voc_folder/mine:{split}", tmp_path / "data")
    return {source.image_id(i) for i in range(len(source))}


def prepare(folder, tmp_path, force=False, splits=None, **choices):
    return prepare_voc_folder(
        folder.path,
        tmp_path / "data",
        "mine",
        splits=splits,
        choices=Choices(**choices),
        force=force,
    )


def test_near_duplicates_are_on_one_side_and_all_is_recorded(folder, tmp_path):
    report = prepare(folder, tmp_path, val=0.25, test=0.15, seed=3)
    parts = {split: ids(tmp_path, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 40
    assert len(set().union(*parts.values())) == 40
    for n in range(5):
        (together,) = [
            split
            for split, members in parts.items()
            if members & {f"p{n:02}", f"copy{n}", f"smaller{n}"}
        ]
        assert {f"p{n:02}", f"copy{n}", f"smaller{n}"} <= parts[together]
    assert report.images == {"train": 24, "val": 10, "test": 6}
    directory = tmp_path / "data" / "voc_folder" / "mine" / "2.0.0"
    stored = json.loads((directory / "report.json").read_text())
    assert stored["choices"] == {"val": 0.25, "test": 0.15, "seed": 3}
    assert stored["division"]["seed"] == 3
    assert stored["division"]["shares"] == {"train": 0.6, "val": 0.25, "test": 0.15}
    assert stored["division"]["groups"] == 30
    assert len(stored["division"]["near_duplicates"]) == 5
    assert stored["division"]["near_duplicates"][0] == ["copy0.jpg", "p00.jpg", "smaller0.jpg"]
    assert any("--val=0.25 --test=0.15 --seed=3: train 24, val 10" in n for n in report.notes)
    assert "near-duplicates stay together: 15 images in 5 groups, the largest of 3" in report.notes


def test_the_same_options_give_the_same_sets_and_others_another_fingerprint(folder, tmp_path):
    first = prepare(folder, tmp_path, val=0.2)
    val = ids(tmp_path, "val")
    assert prepare(folder, tmp_path, val=0.2) == first
    for changed in ({"val": 0.3}, {"val": 0.2, "seed": 1}, {"val": 0.2, "test": 0.1}, {}):
        with pytest.raises(UserError, match="options were not those given now"):
            prepare(folder, tmp_path, **changed)
    folder.split("everything", *sorted(ids(tmp_path, "train+val"), reverse=True))
    prepare(folder, tmp_path, force=True, val=0.2)
    assert ids(tmp_path, "val") == val  # whatever the order of the list


def test_a_split_to_divide_is_named_where_there_are_several(folder, tmp_path):
    folder.split("train", *(f"p{n:02}" for n in range(20))).split("test", "p25", "p26")
    with pytest.raises(UserError, match=r"has the splits test, train: name the one .*--from=train"):
        prepare(folder, tmp_path, val=0.2)
    with pytest.raises(UserError, match=r"has the splits test, train: name the one .*--from=train"):
        prepare(folder, tmp_path, val=0.2, divided="trian")
    with pytest.raises(UserError, match="has a split test beside train"):
        prepare(folder, tmp_path, val=0.2, test=0.1, divided="train")
    report = prepare(folder, tmp_path, val=0.2, divided="train")
    assert report.images == {"train": 16, "val": 4, "test": 2}
    assert ids(tmp_path, "test") == {"p25", "p26"}
    assert report.division["from"] == "train"


def test_other_lists_with_the_same_images_are_named(folder, tmp_path):
    folder.split("train", *(f"p{n:02}" for n in range(20)))
    folder.split("all_of_it", *(f"p{n:02}" for n in range(20)))
    report = prepare(folder, tmp_path, val=0.2, divided="train")
    assert "4 images of val also in all_of_it" in report.notes


def test_left_out_images_are_counted_for_train(folder, tmp_path):
    folder.image("broken", photo(0)[:-50]).note("broken", "<annotation></annotation>")
    report = prepare(folder, tmp_path, val=0.2)
    assert report.left_out == {"train": 1, "val": 0}


def test_without_usable_images_the_reason_comes_first(tmp_path):
    folder = Folder(tmp_path / "Photos")
    folder.both("a").image("a", photo(0)[:-50])
    with pytest.raises(UserError, match="has no usable image: 1 × image that cannot be decoded"):
        prepare(folder, tmp_path, val=0.2)


def test_classes_that_val_lacks_are_named(folder, tmp_path):
    folder.both("only", obj("giraffe")).image("only", photo(99))
    report = prepare(folder, tmp_path, val=0.2)
    assert "val has no image with the class giraffe" in report.notes


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"val": 1.0}, "--val=1 and --test=0 must be shares"),
        ({"test": -0.1}, "--test=-0.1 must be"),
        ({"val": 0.6, "test": 0.4}, "leave something for training"),
        ({"divided": "train"}, "--from names a split to divide"),
    ],
)
def test_impossible_shares_are_errors(choices, words, folder, tmp_path):
    with pytest.raises(UserError, match=words):
        prepare(folder, tmp_path, **choices)
    assert not (tmp_path / "data").exists()
