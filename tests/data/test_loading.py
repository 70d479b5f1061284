import subprocess
import sys
import threading
import time

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.data.loading import TrainingOrder, evaluation_order, to_device
from scratchdet_jax.errors import UserError
from tests.data.batches import eval_batches, train_batches

CANVAS = (24, 32)


class Source:
    """Stands in for a DetectionSource: pictures of different sizes, 0–4 boxes each."""

    spec, data_dir = "made:train", "nowhere"

    def __init__(self, count, suffix=".png"):
        self.reads = []
        self.examples = [self._example(i, suffix) for i in range(count)]

    @staticmethod
    def _example(i, suffix):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 255, (int(rng.integers(5, 50)), int(rng.integers(5, 50)), 3))
        corner = rng.uniform(0, 0.5, (i % 5, 2))
        return {
            "image": cv2.imencode(suffix, image.astype(np.uint8))[1].tobytes(),
            "orientation": 1,
            "boxes": np.concatenate([corner, corner + 0.3], 1).astype(np.float32),
            "labels": rng.integers(1, 4, i % 5).astype(np.int32),
            "ignore": rng.random(i % 5) < 0.5,
            "filename": f"{i}.png",
            "image_id": str(i),
        }

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.examples[index]

    def describe(self, index):
        return f"record {index} of {self.spec} in {self.data_dir}"


def take(iterator, count):
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def train(source, batch_size, **options):
    options = {"seed": 0, "threads": 2, "canvas": CANVAS, "max_boxes": 4} | options
    return train_batches(source, batch_size=batch_size, **options)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 50),
    rows=st.integers(1, 5),
    processes=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_global_batches_do_not_depend_on_processes_or_start(count, rows, processes, start, seed):
    batch = rows * processes
    whole = TrainingOrder(count, seed, batch)
    parts = [TrainingOrder(count, seed, batch, start, p, processes) for p in range(processes)]
    for step in range(3):
        joined = [part[step * rows + r] for part in parts for r in range(rows)]
        assert joined == [whole[(start + step) * batch + i] for i in range(batch)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_each_epoch_has_each_example_once(count, batch, seed):
    order = TrainingOrder(count, seed, batch)
    for epoch in (0, 1, 1000):
        first = epoch * count
        assert sorted(order[first + i] for i in range(count)) == list(range(count))


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        order = TrainingOrder(64, seed, 8)
        return [order[64 * number + i] for i in range(64)]

    orders = [epoch(seed, number) for seed in (0, 1, 2) for number in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(64)) not in orders
    assert epoch(0, 5) == epoch(0, 5)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 40), st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_evaluation_covers_each_example_once(count, rows, processes):
    batch = rows * processes
    orders = [evaluation_order(count, batch, p, processes) for p in range(processes)]
    lengths = {len(order) for order in orders}
    assert lengths == {-(-count // batch) * rows}
    found = [order[i] for order in orders for i in range(len(order))]
    assert sorted(i for i in found if i >= 0) == list(range(count))
    assert found.count(-1) == -count % batch
    if processes == 1:
        assert found[:count] == list(range(count))


@pytest.mark.parametrize("processes", [1, 2])
def test_training_batches_hold_the_examples(processes):
    source = Source(13)
    batches = [
        take(train(source, 4, process_index=p, process_count=processes), 5)
        for p in range(processes)
    ]
    order = TrainingOrder(13, 0, 4)
    for step in range(5):
        joined = {
            key: np.concatenate([batches[p][step][key] for p in range(processes)])
            for key in batches[0][0]
        }
        assert joined["id"].tolist() == [order[step * 4 + i] for i in range(4)]
        assert joined["image"].shape == (4, *CANVAS, 3)
        dtypes = {key: value.dtype.name for key, value in joined.items()}
        assert dtypes == {
            "image": "uint8",
            "size": "int32",
            "original_size": "int32",
            "boxes": "float32",
            "labels": "int32",
            "ignore": "bool",
            "id": "int32",
        }
        for row in range(4):
            check_row(source, joined, row)


def check_row(source, batch, row):
    """Compares one row with its example, decoded and reduced separately."""
    example = source.examples[batch["id"][row]]
    image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert batch["original_size"][row].tolist() == list(image.shape[:2])
    height, width = batch["size"][row]
    reduced = fit_to_canvas(image.copy(), CANVAS)
    assert (height, width) == reduced.shape[:2]
    np.testing.assert_array_equal(batch["image"][row, :height, :width], reduced)
    assert not batch["image"][row, height:].any()
    assert not batch["image"][row, :, width:].any()
    count = len(example["labels"])
    for key in ("boxes", "labels", "ignore"):
        np.testing.assert_array_equal(batch[key][row, :count], example[key])
        assert not batch[key][row, count:].any()


def test_starting_late_gives_the_same_batches_and_reads_nothing_before():
    source = Source(11)
    early = take(train(source, 4), 6)
    source.reads.clear()
    late = take(train(source, 4, start_step=4), 2)
    for a, b in zip(early[4:], late, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    order = TrainingOrder(11, 0, 4, start_step=4)
    assert set(source.reads) <= {order[i] for i in range(8 + 8)}


def test_batches_do_not_depend_on_the_number_of_threads():
    source = Source(9)
    one, many = (take(train(source, 3, threads=t), 6) for t in (1, 8))
    for a, b in zip(one, many, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_images_are_black_outside_their_valid_part_and_aligned():
    source = Source(13)
    batches = train(source, 4)
    for _ in range(30):
        batch = next(batches)
        assert batch["image"].ctypes.data % 64 == 0
        for row in range(4):
            check_row(source, batch, row)
    batches.close()
    for batch in eval_batches(source, batch_size=3, canvas=CANVAS, max_boxes=4, threads=1):
        assert not batch["image"][batch["id"] < 0].any()


def test_a_batch_keeps_its_memory():
    batches = train(Source(13), 4)
    used = []
    for _ in range(8):
        image = next(batches)["image"]
        before = image.copy()
        used += [(image[2:3, 1:][None], before[2:3, 1:][None]), (jax.device_put(image), before)]
        del image
    for _ in range(20):
        next(batches)
    batches.close()
    del batches
    for found, before in used:
        np.testing.assert_array_equal(found, before)


def test_a_small_set_repeats_within_a_batch():
    (batch,) = take(train(Source(2), 8), 1)
    assert np.bincount(batch["id"]).tolist() == [4, 4]


@pytest.mark.parametrize(("count", "processes"), [(10, 1), (10, 2), (3, 4), (8, 2)])
def test_evaluation_batches_pad_with_black_examples(count, processes):
    source = Source(count)
    per_process = [
        list(
            eval_batches(
                source,
                batch_size=4,
                canvas=CANVAS,
                max_boxes=4,
                threads=2,
                process_index=p,
                process_count=processes,
            )
        )
        for p in range(processes)
    ]
    assert {len(batches) for batches in per_process} == {-(-count // 4)}
    ids = []
    for batches in per_process:
        for batch in batches:
            assert len(batch["id"]) == 4 // processes
            for row, index in enumerate(batch["id"]):
                if index >= 0:
                    ids.append(index)
                    check_row(source, batch, row)
                else:
                    assert not any(batch[k][row].any() for k in ("image", "boxes", "labels"))
                    assert batch["size"][row].tolist() == list(CANVAS)
    assert sorted(ids) == list(range(count))


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def test_images_are_turned_by_the_orientation_of_the_record():
    source = Source(3)
    for example in source.examples:
        example["orientation"] = 6
    (batch,) = take(train(source, 3), 1)
    for row, index in enumerate(batch["id"]):
        encoded = np.frombuffer(source.examples[index]["image"], np.uint8)
        upright = np.rot90(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], -1)
        assert batch["original_size"][row].tolist() == list(upright.shape[:2])
        height, width = batch["size"][row]
        expected = fit_to_canvas(np.ascontiguousarray(upright), CANVAS).astype(int)
        assert np.abs(batch["image"][row, :height, :width] - expected).max() <= 1


def test_a_damaged_image_is_named():
    whole = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    for data in (b"", b"nonsense", whole[:40]):
        source = Source(3)
        source.examples[1]["image"] = data
        with pytest.raises(UserError) as error:
            take(train(source, 3), 1)
        assert "1.png, record 1 of made:train in nowhere, cannot be decoded" in str(error.value)


def test_too_many_boxes_name_the_field_the_file_and_the_number():
    with pytest.raises(UserError) as error:
        take(train(Source(5), 5, max_boxes=3), 1)
    assert str(error.value) == (
        "4.png of made:train has 4 boxes, more than config.data.max_boxes = 3: set it to 4 or more"
    )
    take(train(Source(4), 4, max_boxes=3), 1)


def test_a_seed_out_of_range_is_refused_immediately():
    with pytest.raises(UserError, match=r"config\.seed is -1"):
        train(Source(4), 4, seed=-1)


def settle(condition, seconds=10.0):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def test_decoding_runs_ahead_no_further_than_the_bound():
    for batch_size, threads in ((6, 1), (2, 4)):
        source = Source(12)
        batches = train(source, batch_size, threads=threads)
        next(batches)
        ahead = max(batch_size, 2 * threads * 2)  # chunks of two rows here
        assert settle(lambda s=source, n=batch_size + ahead: len(s.reads) >= n)
        time.sleep(0.1)
        assert len(source.reads) == batch_size + ahead
        batches.close()


def test_closing_ends_the_threads():
    assert settle(lambda: not loader_threads())
    batches = train(Source(8), 4)
    ahead = to_device(batches, lambda batch: batch)
    next(ahead)
    assert loader_threads()
    ahead.close()
    assert settle(lambda: not loader_threads())
    assert list(eval_batches(Source(3), batch_size=2, canvas=CANVAS, max_boxes=4))
    assert settle(lambda: not loader_threads())


def test_the_program_exits_without_closing_the_loader():
    program = (
        "import sys; sys.path[:0] = ['tests/data', '.']\n"
        "from test_loading import Source, train\n"
        "batches = train(Source(20), 4, threads=4); next(batches)\n"
        "print('done', 'tensorflow' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "done False\n"
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_to_device_keeps_order_and_runs_ahead(depth):
    put = []
    moved = to_device((i for i in range(7)), lambda x: put.append(x) or -x, depth)
    for i in range(7):
        assert next(moved) == -i
        assert put == list(range(min(7, i + depth)))
    assert list(moved) == []


def test_to_device_propagates_errors_and_closes():
    closed = []

    def batches():
        try:
            yield 1
            yield 2
            raise UserError("broken")
        finally:
            closed.append(True)

    moved = to_device(batches(), lambda x: x)
    assert next(moved) == 1
    with pytest.raises(UserError, match="broken"):
        next(moved)
    assert closed == [True]
