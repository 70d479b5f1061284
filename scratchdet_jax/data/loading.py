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
from scratchdet_jax.data.repeating import (
    Repeats,
    class_factors,
    image_factors,
    labels_of,
    random_state,
    repeated_line,
)
from scratchdet_jax.errors import UserError, plural

Batch = dict[str, np.ndarray]
T = TypeVar("T")


class TrainingOrder(Sequence[int]):
    """The index of the example at each position of one process's endless training stream.

    Every epoch has its own permutation, keyed by (seed, epoch). Global batch k is positions
    k·B … k·B + B − 1 of the concatenated permutations, whatever the number of processes;
    process p holds rows p·b … p·b + b − 1 of it, b = B / processes. A permutation is drawn when
    its first position is needed, so starting late costs nothing.

    With `factors`, an epoch is a permutation of the images as often as they are repeated in it;
    see repeating.Repeats.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        factors: np.ndarray | None = None,
    ) -> None:
        """`count` examples; the stream begins with global batch `start_step`.

        `factors`: float64 [count], how often each example is repeated; None for once.
        """
        self._count, self._seed = count, seed
        self._repeats = None if factors is None else Repeats(factors, seed)
        self._permutation = functools.lru_cache(2)(self._permuted)
        self._batch_size, self._start_step = batch_size, start_step
        self._rows = batch_size // process_count
        self._first_row = process_index * self._rows

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * self._rows  # as good as endless

    def __getitem__(self, position: int) -> int:
        step, row = divmod(position, self._rows)
        taken = (self._start_step + step) * self._batch_size + self._first_row + row
        repeats = self._repeats
        epoch, place = repeats.locate(taken) if repeats else divmod(taken, self._count)
        return int(self._permutation(epoch)[place])

    def _permuted(self, epoch: int) -> np.ndarray:
        images = self._repeats.indices(epoch) if self._repeats else self._count
        return random_state(self._seed, epoch).permutation(images)


class EvaluationOrder(Sequence[int]):
    """The index of the example at each position of one process's pass over a split.

    Examples come in split order, rows are laid out as in TrainingOrder, and −1 pads the last global
    batch.
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
    """Fills batches in a given order, a chunk of rows at a time; used from Grain's threads.

    The thread that decodes an image also copies it into its batch, while it is in the core's cache.
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
        """`rows` is this process's share of a batch; `substituted` as in `train_batches`."""
        # Handing over one row at a time would cost a tenth of the decoding time.
        self.chunk = math.gcd(rows, 4)
        self._source, self._order, self._rows = source, order, rows
        self._canvas, self._max_boxes = canvas, max_boxes
        self._substituted = substituted
        self._batches: dict[int, Batch] = {}
        self._lock = threading.Lock()
        self._memory: list[np.ndarray] = []  # of batches no longer in use

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
        """Removes and returns a batch whose rows are all filled."""
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
        """The index, example and image at `index`, or of the next one that can be decoded.

        The substitute depends on the data set alone, so it is the same for any number of processes
        and after a resume.
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
        raise UserError(f"no image of {self._source.spec} can be read: prepare it again")

    def _decoded(self, index: int) -> tuple[Example, np.ndarray, tuple[int, int]]:
        example = self._source[index]
        try:
            return example, *decode_to_canvas(
                example["image"], self._canvas, example["orientation"]
            )
        except ValueError as error:
            raise UserError(
                f"{example['filename']}, {self._source.describe(index)}, cannot be decoded "
                f"({error}): the data set is damaged; prepare it again, or train without it with "
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
    factors: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Endless training batches, starting at global batch `start_step`; see TrainingOrder.

    Host memory: the batch handed out; the batches that hold the next max(rows of this process,
    8·threads) examples (two batches if the rows are more); and what decoding `threads` images takes
    (three bytes per pixel; see `decode_to_canvas` for large ones).

    Args:
        source: the examples.
        batch_size: images in a global batch; this process gets batch_size / process_count
            consecutive rows.
        canvas: (H, W) in pixels; larger images are reduced to fit, smaller ones are not resized.
        max_boxes: number of box slots M.
        seed: seed of the order of the examples, 0 … 2³² − 1.
        start_step: number of global batches to skip.
        threads: number of threads that read and decode; 0 = one per core.
        process_index: index of this process.
        process_count: number of processes; divides batch_size.
        substituted: None raises an error at an image that cannot be read or decoded; a dictionary
            receives its position and the reason, and the next image of the source replaces it.
        factors: as in TrainingOrder.

    Yields:
        image uint8 [b, H, W, 3] RGB, zero outside the valid part; size int32 [b, 2], height and
        width of the valid part; original_size int32 [b, 2], before the reduction; boxes float32
        [b, M, 4]; labels int32 [b, M]; ignore bool [b, M]; id int32 [b], position in the source.
        Do not write to the arrays: on CPU the device may be using them. Call `close()` on the
        iterator to stop its threads.

    Raises:
        UserError: the sizes do not fit together, an image cannot be decoded, or one has more than
            `max_boxes` boxes.
    """
    rows = _rows(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise UserError(f"config.seed is {seed}: choose one from 0 to 2**32 - 1")
    order = TrainingOrder(
        len(source), seed, batch_size, start_step, process_index, process_count, factors
    )
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
        factors=_factors(config, source),
    )
    return _microbatches(batches, count)


def _factors(config: ml_collections.ConfigDict, source: DetectionSource) -> np.ndarray | None:
    """How often each image is repeated, by `config.data.repeat_threshold`; says what that means."""
    if not config.data.repeat_threshold:
        return None
    labels = labels_of(source, config.data.train_on_ignored)
    by_class = class_factors(labels, len(source.class_names), config.data.repeat_threshold)
    factors = image_factors(labels, by_class)
    line = repeated_line(by_class, factors.sum().item(), source.class_names)
    print(line, file=sys.stderr)
    return factors


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
    """The argument `substituted` of `train_batches` for the policy `config.data.on_error`."""
    return {} if config.data.on_error == "substitute" else None


def substituted_line(source: DetectionSource, substituted: dict[int, str]) -> str:
    """A sentence about the images that were replaced by others; "" if there is none."""
    if not substituted:
        return ""
    places = sorted(substituted)
    named = "; ".join(substituted[place] for place in places[:3])
    more = f"; and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"{plural(len(places), 'image')} of {source.spec} could not be read; the next readable "
        f"image was used instead (config.data.on_error): {named}{more}"
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
    """Every example of the source once, in order; arguments and batches as in `train_batches`.

    The number of batches is the same for every process. The last ones are padded with black images
    of id −1, the size of the canvas and without boxes.
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
        batches: batches on the host; closed when this iterator ends or is closed.
        put: starts the transfer of a batch and returns without waiting for it.
        depth: number of batches on the device at a time, including the one handed out last.

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
            f"a batch of {plural(batch_size, 'image')} cannot be split evenly among "
            f"{process_count} processes: choose a multiple"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    return batch_size // process_count


def _batches(filler: _Rows, rows: int, threads: int) -> Iterator[Batch]:
    cv2.setNumThreads(0)  # OpenCV's own threads would fight Grain's
    threads = threads or usable_cores()
    ahead = max(rows // filler.chunk, 2 * threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(filler).to_iter_dataset(options))
    return _filled(iterator, filler, rows)


def usable_cores() -> int:
    """Number of cores this process may use (a container's share, if the system reports it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _filled(ends: Any, filler: _Rows, rows: int) -> Iterator[Batch]:
    """Yields each batch when its last row is filled; chunks come in order."""
    try:
        for end in ends:
            step, more = divmod(end, rows)
            if not more:
                yield filler.take(step - 1)
    finally:
        ends.close()


def _empty_batch(image: np.ndarray, max_boxes: int) -> Batch:
    """A batch around the memory of its images, which is not cleared."""
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
    """An uninitialised uint8 array, in memory taken from `free` or newly allocated.

    New memory costs a tenth of the decoding time, because the system zeroes it page by page.
    It starts at a multiple of 64 bytes, so that JAX on CPU can use it without a copy.
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
    """The owner of borrowed memory, for NumPy: returns it when nothing uses it any more.

    Every view of the array keeps this object alive, and so does JAX while it uses the array.
    """

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self._memory)
