"""Which examples a run sees, with a prepared data set and the complete loader."""

import functools
import io
import itertools
import json
import time
import weakref

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scratchdet_jax.data import loading
from scratchdet_jax.data.loading import to_device
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder
from scratchdet_jax.parallel.devices import DeviceMapping
from tests.data.batches import eval_batches, train_batches

TRAIN, VALIDATION = 7, 4
COUNT = TRAIN + VALIDATION
LOADER = {"canvas": (24, 32), "max_boxes": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven images in two splits: of several sizes, some turned by EXIF, with 0–2 boxes."""
    folder = tmp_path_factory.mktemp("made")
    splits = []
    numbers = iter(range(1, 999))
    for name, count in (("train", TRAIN), ("validation", VALIDATION)):
        (folder / name).mkdir()
        images, annotations = [], []
        for number in itertools.islice(numbers, count):
            width, height = write_image(folder / name / f"{number}.jpg", number)
            images.append(
                {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
            )
            annotations += [
                {
                    "id": 9 * number + i,
                    "image_id": number,
                    "category_id": 5,
                    "area": 12,
                    "iscrowd": i % 2,
                    "bbox": [i, 2, 3 + i, 4],
                }
                for i in range(number % 3)
            ]
        file = folder / f"{name}.json"
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "a"}],
        }
        file.write_text(json.dumps(content))
        splits.append(CocoSplit(name, file, folder / name))
    prepare_coco_folder(splits, folder, "made")
    return DetectionSource("coco_folder/made:train,coco_folder/made:validation", folder)


def write_image(path, number):
    """Writes an image of a unique colour, every fourth one turned; returns its displayed size."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(10, 90, 2))
    image = Image.fromarray(np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6 if number % 4 == 0 else 1
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())
    return (height, width) if number % 4 == 0 else (width, height)


def joined(per_process):
    """The global batches, from the batches of each process."""
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*per_process, strict=True)
    ]


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def take(batches, count):
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


STEPS = 8


@functools.lru_cache
def uninterrupted(source, batch_size, seed):
    """The first global batches of a run in one process with one thread."""
    return take(train_batches(source, batch_size=batch_size, seed=seed, threads=1, **LOADER), STEPS)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    processes=st.integers(1, 4),
    start=st.integers(0, STEPS - 2),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1),
)
def test_the_global_batches_do_not_depend_on_processes_start_or_threads(
    source, rows, processes, start, threads, seed
):
    batch_size = rows * processes
    parts = [
        take(
            train_batches(
                source,
                batch_size=batch_size,
                seed=seed,
                start_step=start,
                threads=threads,
                process_index=process,
                process_count=processes,
                **LOADER,
            ),
            2,
        )
        for process in range(processes)
    ]
    expected = uninterrupted(source, batch_size, seed)[start : start + 2]
    for found, batch in zip(joined(parts), expected, strict=True):
        same(found, batch)


@settings(max_examples=15, deadline=None)
@given(
    stops=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    processes=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=3, max_size=3),
    depth=st.integers(1, 3),
)
def test_a_resumed_run_sees_the_same_batches_as_an_uninterrupted_one(
    source, stops, processes, depth
):
    """The run stops with batches decoded and sent ahead, and resumes with other processes."""
    seen, step = [], 0
    for taken, count in zip(stops, processes, strict=False):
        parts = []
        for process in range(count):
            batches = train_batches(
                source,
                batch_size=6,
                seed=0,
                start_step=step,
                threads=2,
                process_index=process,
                process_count=count,
                **LOADER,
            )
            parts.append(take(to_device(batches, lambda batch: batch, depth), taken))
        seen += joined(parts)
        step += taken
    whole = take(train_batches(source, batch_size=6, seed=0, threads=1, **LOADER), step)
    for found, batch in zip(seen, whole, strict=True):
        same(found, batch)


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 33), (4, 11), (11, 3), (15, 11)])
def test_each_epoch_visits_each_image_once(source, batch_size, steps):
    batches = take(train_batches(source, batch_size=batch_size, seed=3, threads=2, **LOADER), steps)
    ids = np.concatenate([batch["id"] for batch in batches]).reshape(-1, COUNT)
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(COUNT), (len(ids), 1)))
    assert len({tuple(epoch) for epoch in ids}) == len(ids)  # each in a different order
    content = {i: batch["image"][row] for batch in batches for row, i in enumerate(batch["id"])}
    assert len({image.tobytes() for image in content.values()}) == COUNT


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
@settings(max_examples=12, deadline=None)
@given(
    devices=st.sampled_from([1, 2, 3, 8]),
    rows=st.integers(1, 3),
    processes=st.integers(1, 3),
    threads=st.integers(1, 3),
)
def test_an_evaluation_covers_the_split_once(source, kind, devices, rows, processes, threads):
    mapping = DeviceMapping(kind, jax.devices()[:devices])  # of each process
    step = mapping.map_eval_step(lambda _, batch: (batch["id"], batch["size"]))
    batch_size = rows * devices * processes
    parts = []
    for process in range(processes):
        batches = eval_batches(
            source,
            batch_size=batch_size,
            threads=threads,
            process_index=process,
            process_count=processes,
            **LOADER,
        )
        sent = to_device(
            batches, lambda b: (b, mapping.put_batch({k: b[k][None] for k in ("id", "size")}))
        )
        results = []
        for host, device in sent:
            ids, sizes = jax.device_get(step(0.0, device))
            np.testing.assert_array_equal(sizes, host["size"])  # the row of the same image
            results.append({"id": ids})
        parts.append(results)
    ids = np.concatenate([batch["id"] for batch in joined(parts)])
    assert len(ids) == -(-COUNT // batch_size) * batch_size
    assert ids.tolist() == [*range(COUNT), *[-1] * (len(ids) - COUNT)]


@pytest.mark.parametrize(("batch_size", "threads"), [(8, 1), (16, 2), (4, 3), (1, 2), (6, 2)])
def test_the_number_of_live_batches_is_as_documented(source, batch_size, threads, monkeypatch):
    alive, most, make = set(), [0], loading._aligned_zeros

    def counted(shape):
        array = make(shape)
        number = id(array.base)
        alive.add(number)
        weakref.finalize(array.base, alive.discard, number)
        most[0] = max(most[0], len(alive))
        return array

    monkeypatch.setattr(loading, "_aligned_zeros", counted)
    batches = train_batches(source, batch_size=batch_size, seed=0, threads=threads, **LOADER)
    for _ in range(4):
        next(batches)
        time.sleep(0.1)  # lets the loader run ahead as far as possible
    batches.close()
    ahead = max(batch_size, 8 * threads)
    # Examples ahead may start within a batch, and one batch is handed out.
    assert 2 <= most[0] <= -(-ahead // batch_size) + 1 + 1
