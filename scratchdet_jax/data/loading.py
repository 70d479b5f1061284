"""Examples → batches of padded canvases: order, decoding, sharding over processes, prefetch.

The examples of a batch are a pure function of (seed, step); see TrainingOrder.
"""

import collections
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import cv2
import grain
import ml_collections
import numpy as np

from scratchdet_jax.data.images import decode_to_canvas
from scratchdet_jax.data.records import DetectionSource, Example
from scratchdet_jax.errors import UserError

Batch = dict[str, np.ndarray]
T = TypeVar("T")


class TrainingOrder(Sequence[int]):
    """Which example stands at each position of one process's endless training stream.

    Every epoch is a permutation of its own, keyed by (seed, epoch). Global batch k is positions
    k·B … k·B + B − 1 of the permutations laid end to end, whatever the number of processes;
    process p holds rows p·b … p·b + b − 1 of it, b = B / processes. A permutation is drawn when
    its first position is asked for, so starting late costs nothing.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """`count` examples; the stream begins with global batch `start_step`."""
        self._permutation = functools.lru_cache(2)(functools.partial(_permutation, count, seed))
        self._count = count
        self._batch_size, self._start_step = batch_size, start_step
        self._rows = batch_size // process_count
        self._first_row = process_index * self._rows

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * self._rows  # endless, as Sequence can say it

    def __getitem__(self, position: int) -> int:
        step, row = divmod(position, self._rows)
        taken = (self._start_step + step) * self._batch_size + self._first_row + row
        epoch, place = divmod(taken, self._count)
        return int(self._permutation(epoch)[place])


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch; RandomState's numbers are frozen, so it outlives NumPy's versions."""
    bits = np.random.MT19937(np.random.SeedSequence((seed, epoch)))
    return np.random.RandomState(bits).permutation(count)


class EvaluationOrder(Sequence[int]):
    """Which example stands at each position of one process's pass over a split.

    In split order, rows laid out as in TrainingOrder; −1 fills the last global batch.
    """

    def __init__(
        self, count: int, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> None:
        """`count` examples in the split."""
        self._count, self._batch_size = count, batch_size
        self._rows = batch_size // process_count
        self._first_row = process_index * self._rows

    def __len__(self) -> int:
        return -(-self._count // self._batch_size) * self._rows

    def __getitem__(self, position: int) -> int:
        step, row = divmod(position, self._rows)
        index = step * self._batch_size + self._first_row + row
        return index if index < self._count else -1


class _Rows:
    """Fills batches, a chunk of rows at a time, in an order; used from Grain's threads.

    The thread that decoded an image copies it into its batch, while it is in the core's cache.
    """

    def __init__(
        self,
        source: DetectionSource,
        order: Sequence[int],
        rows: int,
        canvas: tuple[int, int],
        max_boxes: int,
        substituted: dict[int, str] | None = None,
    ) -> None:
        """`rows` of a batch are this process's; `substituted` as in train_batches."""
        # Handing over one row at a time would cost a tenth of its decoding.
        self.chunk = math.gcd(rows, 4)
        self._source, self._order, self._rows = source, order, rows
        self._canvas, self._max_boxes = canvas, max_boxes
        self._substituted = substituted
        self._batches: dict[int, Batch] = {}
        self._lock = threading.Lock()
        self._memory: list[np.ndarray] = []  # of batches that are no longer in use

    def __len__(self) -> int:
        return len(self._order) // self.chunk

    def __getitem__(self, number: int) -> int:
        """Fills a chunk of rows; returns the position after them."""
        step, first = divmod(number * self.chunk, self._rows)
        with self._lock:
            if step not in self._batches:
                image = _borrow(self._memory, (self._rows, *self._canvas, 3))
                self._batches[step] = _empty_batch(image, self._max_boxes)
            batch = self._batches[step]
        for row in range(first, first + self.chunk):
            index = self._order[step * self._rows + row]
            if index >= 0:
                self._fill(batch, row, index)
            else:
                batch["image"][row] = 0
        return step * self._rows + first + self.chunk

    def take(self, step: int) -> Batch:
        """Hands over a batch, all of whose rows are filled."""
        with self._lock:
            return self._batches.pop(step)

    def _fill(self, batch: Batch, row: int, index: int) -> None:
        index, example, image, original_size = self._usable(index)
        count = len(example["labels"])
        if count > self._max_boxes:
            raise UserError(
                f"{example['filename']} of {self._source.spec} has {count} boxes, more than "
                f"config.data.max_boxes = {self._max_boxes}: set it to {count} or more"
            )
        height, width = image.shape[:2]
        batch["image"][row, :height, :width] = image
        batch["image"][row, :height, width:] = 0
        batch["image"][row, height:] = 0
        batch["size"][row] = height, width
        batch["original_size"][row] = original_size
        for key in ("boxes", "labels", "ignore"):
            batch[key][row, :count] = example[key]
        batch["id"][row] = index

    def _usable(self, index: int) -> tuple[int, Example, np.ndarray, tuple[int, int]]:
        """The example at `index`, decoded; by policy the next one that can be, and its index.

        Which one it is depends on the data set alone, so it is the same for any number of
        processes and after a stop.
        """
        for step in range(len(self._source)):
            taken = (index + step) % len(self._source)
            try:
                return taken, *self._decoded(taken)
            except UserError as error:
                if self._substituted is None:
                    raise
                with self._lock:
                    if taken not in self._substituted:
                        self._substituted[taken] = str(error)
        raise UserError(f"not one image of {self._source.spec} can be read: prepare it again")

    def _decoded(self, index: int) -> tuple[Example, np.ndarray, tuple[int, int]]:
        example = self._source[index]
        try:
            return example, *decode_to_canvas(
                example["image"], self._canvas, example["orientation"]
            )
        except ValueError as error:
            raise UserError(
                f"{example['filename']}, {self._source.describe(index)}, cannot be decoded "
                f"({error}): the data set is damaged; prepare it again, or train without it by "
                "--config.data.on_error=substitute"
            ) from None


def train_batches(
    source: DetectionSource,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    max_boxes: int,
    seed: int,
    start_step: int = 0,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    substituted: dict[int, str] | None = None,
) -> Iterator[Batch]:
    """Endless training batches, from global batch `start_step` on; see TrainingOrder.

    Host memory: the batches that hold the next max(rows of this process, 8·threads) examples (two
    where that is the rows), besides the one handed out; and what decoding `threads` images takes
    (three bytes for each of their pixels; see decode_to_canvas for large ones).

    Args:
        source: the examples.
        batch_size: global; this process gets batch_size / process_count consecutive rows.
        canvas: (H, W) in pixels; larger images are reduced to fit, smaller ones are left alone.
        max_boxes: slots M for boxes.
        seed: of the order of the examples, 0 … 2³² − 1.
        start_step: global batches to pass over.
        threads: that read and decode; 0 = one for every core.
        process_index: of this process.
        process_count: of all processes; divides batch_size.
        substituted: None stops at an image that cannot be read or decoded; a dictionary gets its
            position and the reason, and the next image of the source takes its place.

    Yields:
        image uint8 [b, H, W, 3] RGB, zero outside the valid part; size int32 [b, 2], height and
        width of the valid part; original_size int32 [b, 2], before the reduction; boxes float32
        [b, M, 4]; labels int32 [b, M]; ignore bool [b, M]; id int32 [b], position in the source.
        The arrays are not to be written to: on CPU the device may be using them. Call `close()` on
        the iterator to stop its threads.

    Raises:
        UserError: sizes that do not fit together, an image that cannot be decoded, or one with
            more than `max_boxes` boxes.
    """
    rows = _rows(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise UserError(f"config.seed is {seed}: choose one from 0 to 2**32 - 1")
    order = TrainingOrder(len(source), seed, batch_size, start_step, process_index, process_count)
    filler = _Rows(source, order, rows, canvas, max_boxes, substituted)
    return _batches(filler, rows, threads)


def train_loader(
    config: ml_collections.ConfigDict,
    source: DetectionSource,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    substituted: dict[int, str] | None = None,
) -> Iterator[Batch]:
    """Yields the batches of a run's updates, from update `start_step + 1` on.

    The batch of an update is `config.accumulate_steps` microbatches, one after the other in the
    order of the examples, so microbatch i holds the same examples on any number of devices.

    Args:
        config: the run's config.
        source: its training split.
        start_step: updates made so far.
        process_index: of this process.
        process_count: of all processes.
        substituted: as in train_batches.

    Yields:
        The arrays of train_batches with a leading axis of microbatches, [accumulate_steps, b, …].
        Close the iterator to stop its threads.
    """
    count = config.accumulate_steps
    batches = train_batches(
        source,
        batch_size=config.batch_size // count,
        canvas=config.data.canvas,
        max_boxes=config.data.max_boxes,
        seed=config.seed,
        start_step=start_step * count,
        threads=config.data.threads,
        process_index=process_index,
        process_count=process_count,
        substituted=substituted,
    )
    return _microbatches(batches, count)


def _microbatches(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Stacks every `count` batches; closes `batches` when it is closed."""
    try:
        while True:
            group = [next(batches) for _ in range(count)]
            # A single microbatch is not copied.
            stack = np.stack if count > 1 else lambda arrays: arrays[0][None]
            yield {key: stack([batch[key] for batch in group]) for key in group[0]}
    finally:
        batches.close()


def substitutes(config: ml_collections.ConfigDict) -> dict[int, str] | None:
    """What `train_batches` takes as `substituted` by the policy `config.data.on_error`."""
    return {} if config.data.on_error == "substitute" else None


def substituted_line(source: DetectionSource, substituted: dict[int, str]) -> str:
    """A sentence on the images that others took the place of; "" if there is none."""
    if not substituted:
        return ""
    places = sorted(substituted)
    named = "; ".join(substituted[place] for place in places[:3])
    more = f"; and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"{len(places)} images of {source.spec} could not be read, and others took their place "
        f"(config.data.on_error): {named}{more}"
    )


def eval_batches(
    source: DetectionSource,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    max_boxes: int,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example of the source once, in its order; arguments and batches as in train_batches.

    The number of batches is the same for every process. The last ones are padded with black
    examples of id −1, without boxes, whose size is the canvas's.
    """
    rows = _rows(batch_size, process_index, process_count)
    order = EvaluationOrder(len(source), batch_size, process_index, process_count)
    return _batches(_Rows(source, order, rows, canvas, max_boxes), rows, threads)


def eval_loader(
    config: ml_collections.ConfigDict,
    source: DetectionSource,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields the evaluation batches of `source` as `config` describes them; see eval_batches."""
    return eval_batches(
        source,
        batch_size=config.eval.batch_size,
        canvas=config.data.canvas,
        max_boxes=config.data.max_boxes,
        threads=config.data.threads,
        process_index=process_index,
        process_count=process_count,
    )


def to_device(batches: Iterable[Batch], put: Callable[[Batch], T], depth: int = 2) -> Iterator[T]:
    """Applies `put` (the transfer) ahead of use.

    Args:
        batches: of the host; closed when this iterator ends or is closed.
        put: starts the transfer of a batch and returns without waiting for it.
        depth: batches on the device at a time, the one handed out last included.

    Yields:
        The results of `put`, in order.
    """
    ahead: collections.deque[T] = collections.deque()
    try:
        for batch in batches:
            ahead.append(put(batch))
            if len(ahead) >= depth:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        ahead.clear()
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _rows(batch_size: int, process_index: int, process_count: int) -> int:
    """Rows of a global batch that one process holds."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} images cannot be shared evenly by {process_count} processes: "
            "choose a multiple"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    return batch_size // process_count


def _batches(filler: _Rows, rows: int, threads: int) -> Iterator[Batch]:
    cv2.setNumThreads(0)  # OpenCV's own threads would fight Grain's
    threads = threads or _cores()
    ahead = max(rows // filler.chunk, 2 * threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(filler).to_iter_dataset(options))
    return _filled(iterator, filler, rows)


def _cores() -> int:
    """Cores this process may use (a container's share, where the system tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _filled(ends: Any, filler: _Rows, rows: int) -> Iterator[Batch]:
    """Hands batches over as their last rows come; chunks come in order."""
    try:
        for end in ends:
            step, more = divmod(end, rows)
            if not more:
                yield filler.take(step - 1)
    finally:
        ends.close()


def _empty_batch(image: np.ndarray, max_boxes: int) -> Batch:
    """A batch around the memory of its images, which holds what it held before."""
    rows = len(image)
    size = np.broadcast_to(np.array(image.shape[1:3], np.int32), (rows, 2))
    return {
        "image": image,
        "size": size.copy(),
        "original_size": size.copy(),
        "boxes": np.zeros((rows, max_boxes, 4), np.float32),
        "labels": np.zeros((rows, max_boxes), np.int32),
        "ignore": np.zeros((rows, max_boxes), bool),
        "id": np.full(rows, -1, np.int32),
    }


def _borrow(free: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array that is not zeroed, in memory taken from `free` or, if there is none, new.

    Fresh memory would cost a tenth of the time of decoding, as the system zeroes it page by page.
    Memory begins at a multiple of 64 bytes, which JAX uses on CPU without copying it.
    """
    try:
        memory = free.pop()
    except IndexError:
        size = math.prod(shape)
        memory = np.empty(size + 64, np.uint8)
        start = -memory.ctypes.data % 64
        memory = memory[start : start + size].reshape(shape)
    return np.asarray(_Loan(memory, free))


class _Loan:
    """What NumPy takes for the owner of borrowed memory: gives it back once nothing uses it.

    Every view of the array, and JAX while it reads or uses it, keeps this object alive.
    """

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self._memory)
