"""Examples → batches of padded canvases: order, decoding, sharding over processes, prefetch.

The examples of a batch are a pure function of (seed, step); see TrainingOrder.
"""

import collections
import contextlib
import functools
import math
import sys
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

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
from scratchdet_jax.progress import usable_cores

Batch = dict[str, np.ndarray]
T = TypeVar("T")


class TrainingOrder:
    """Positions in a source by their place in one process's endless stream of training.

    Every epoch has its own permutation, keyed by (seed, epoch). Global batch k is positions
    k·B … k·B + B − 1 of the concatenated permutations, whatever the number of processes. Process p
    holds rows p·b … p·b + b − 1 of it, b = B / processes. A permutation is drawn when its first
    position is needed, so starting late costs nothing.

    With `factors`, an epoch is a permutation of the images as often as they are repeated in it;
    see repeating.Repeats.

    Attributes:
        rows: b, the rows of a global batch that this process holds.
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
        """Takes `count` examples and B; the stream begins with global batch `start_step`.

        `factors` says how often each example is repeated, float64 [count].

        Raises:
            UserError: the seed is out of range.
        """
        if not 0 <= seed < 2**32:
            raise UserError(f"config.seed is {seed}: choose one from 0 to 2**32 - 1")
        self.rows = batch_size // process_count
        self._batch_size = batch_size
        self._first = start_step * batch_size + process_index * self.rows
        self._count, self._seed = count, seed
        self._repeats = None if factors is None else Repeats(factors, seed)
        self._permutation = functools.lru_cache(2)(self._permuted)

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * self.rows  # as good as endless

    def __getitem__(self, position: int) -> int:
        step, row = divmod(position, self.rows)
        taken, repeats = self._first + step * self._batch_size + row, self._repeats
        epoch, place = repeats.locate(taken) if repeats else divmod(taken, self._count)
        return int(self._permutation(epoch)[place])

    def _permuted(self, epoch: int) -> np.ndarray:
        images = self._repeats.indices(epoch) if self._repeats else self._count
        return random_state(self._seed, epoch).permutation(images)


def evaluation_order(
    count: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Returns the positions that a process reads in one pass over a split; −1 pads the end."""
    order = np.full(-(-count // batch_size) * batch_size, -1)
    order[:count] = np.arange(count)
    return order.reshape(-1, process_count, batch_size // process_count)[:, process_index].ravel()


def train_loader(
    config: ml_collections.ConfigDict,
    source: DetectionSource,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    substituted: dict[int, str] | None = None,
) -> Generator[Batch, None, None]:
    """Yields the batches of a run's updates, from update `start_step + 1` on.

    The batch of an update is `config.accumulate_steps` microbatches, one after the other in the
    order of the examples, so microbatch i holds the same examples on any number of devices.

    `substituted`: as in read_batches.

    Yields:
        The arrays of read_batches, [accumulate_steps, b, …]. Close the iterator to stop its
        threads.
    """
    count = config.accumulate_steps
    order = TrainingOrder(
        len(source),
        config.seed,
        config.batch_size // count,
        start_step * count,
        process_index,
        process_count,
        _factors(config, source),
    )
    return read_batches(source, order, (count, order.rows), config.data, substituted)


def eval_loader(
    settings: ml_collections.ConfigDict,
    source: DetectionSource,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Yields every example of `source` once, in order, in the batches [b, …] of read_batches.

    `settings` is `config.data`; `batch_size` is over all processes, a multiple of their number.
    The number of batches is the same for every process. The last ones are padded with black images
    of id −1, the size of the canvas and without boxes.
    """
    order = evaluation_order(len(source), batch_size, process_index, process_count)
    return read_batches(source, order, (batch_size // process_count,), settings)


def read_batches(
    source: DetectionSource,
    order: TrainingOrder | np.ndarray,
    shape: tuple[int, ...],
    settings: ml_collections.ConfigDict,
    substituted: dict[int, str] | None = None,
) -> Generator[Batch, None, None]:
    """Yields the examples in the given order, in batches of this shape.

    Host memory: the batch handed out; the batches that hold the next max(examples of a batch,
    8·threads) examples (two batches if a batch has more); and what decoding `threads` images takes
    (three bytes per pixel; see `decode_to_canvas` for large ones).

    Args:
        source: the examples.
        order: positions in the source; −1 is a padding example. Whole batches.
        shape: leading axes of the arrays, such as [b] or [microbatches, b].
        settings: `config.data`: the canvas (H, W), the number M of box slots, and the threads.
        substituted: None raises an error at an image that cannot be read or decoded; a dictionary
            receives its position and the reason, and the next image of the source replaces it.

    Yields:
        image uint8 [*shape, H, W, 3] RGB, zero outside the valid part; size int32 [*shape, 2],
        height and width of the valid part; original_size int32 [*shape, 2], before the reduction;
        boxes float32 [*shape, M, 4]; labels int32 [*shape, M]; ignore bool [*shape, M]; id int32
        [*shape], position in the source. Do not write to the arrays: on CPU the device may be using
        them. Close the iterator to stop its threads.

    Raises:
        UserError: an image cannot be decoded, or one has more than `max_boxes` boxes.
    """
    cv2.setNumThreads(0)  # OpenCV's own threads would fight Grain's
    threads = settings.threads or usable_cores()
    filler = _Filler(source, order, shape, settings, substituted)
    ahead = max(filler.rows // filler.chunk, 2 * threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    ends = iter(grain.MapDataset.source(filler).to_iter_dataset(options))
    try:
        for end in ends:  # chunks come in order
            step, more = divmod(end, filler.rows)
            if not more:
                yield filler.take(step - 1)
    finally:
        ends.close()


class _Filler:
    """Fills batches in a given order, a chunk of rows at a time; called from Grain's threads.

    The thread that decodes an image also copies it into its batch, while it is in the core's cache.

    Attributes:
        rows: examples of a batch.
        chunk: rows that one call fills.
    """

    def __init__(
        self,
        source: DetectionSource,
        order: TrainingOrder | np.ndarray,
        shape: tuple[int, ...],
        settings: ml_collections.ConfigDict,
        substituted: dict[int, str] | None,
    ) -> None:
        """Takes the arguments of `read_batches`."""
        self.rows = math.prod(shape)
        # Handing over one row at a time would cost a tenth of the decoding time.
        self.chunk = math.gcd(self.rows, 4)
        self._source, self._order, self._shape = source, order, shape
        self._canvas, self._max_boxes = settings.canvas, settings.max_boxes
        self._substituted = substituted
        self._batches: dict[int, Batch] = {}  # being filled, by number
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._order) // self.chunk

    def __getitem__(self, number: int) -> int:
        """Fills a chunk of rows; returns the position after them."""
        start = number * self.chunk
        step, first = divmod(start, self.rows)
        with self._lock:
            if step not in self._batches:
                self._batches[step] = _empty_batch(self.rows, self._canvas, self._max_boxes)
            batch = self._batches[step]
        for offset in range(self.chunk):
            index = int(self._order[start + offset])
            if index >= 0:
                self._fill(batch, first + offset, index)
        return start + self.chunk

    def take(self, step: int) -> Batch:
        """Removes and returns a batch whose rows are all filled, in its shape."""
        with self._lock:
            batch = self._batches.pop(step)
        return {name: rows.reshape(*self._shape, *rows.shape[1:]) for name, rows in batch.items()}

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
        batch["size"][row] = height, width
        batch["original_size"][row] = original_size
        for key in ("boxes", "labels", "ignore"):
            batch[key][row, :count] = example[key]
        batch["id"][row] = index

    def _usable(self, index: int) -> tuple[int, Example, np.ndarray, tuple[int, int]]:
        """Reads the index, example and image at `index`, or of the next one that can be decoded.

        The substitute depends on the data set alone, so it is the same for any number of processes
        and after a resume.
        """
        for step in range(len(self._source)):
            taken = (index + step) % len(self._source)
            try:
                example = self._source[taken]
                image = decode_to_canvas(example["image"], self._canvas, example["orientation"])
                return taken, example, *image
            except ValueError as error:
                problem = UserError(
                    f"{example['filename']}, {self._source.describe(taken)}, cannot be decoded "
                    f"({error}): the data set is damaged; prepare it again, or train without it "
                    "with --config.data.on_error=substitute"
                )
            except UserError as error:
                problem = error
            if self._substituted is None:
                raise problem
            with self._lock:
                self._substituted.setdefault(taken, str(problem))
        raise UserError(f"no image of {self._source.spec} can be read: prepare it again")


def _factors(config: ml_collections.ConfigDict, source: DetectionSource) -> np.ndarray | None:
    """Returns how often each image is repeated, by `config.data.repeat_threshold`; prints it."""
    if not config.data.repeat_threshold:
        return None
    labels = labels_of(source, config.data.train_on_ignored)
    by_class = class_factors(labels, len(source.class_names), config.data.repeat_threshold)
    factors = image_factors(labels, by_class)
    line = repeated_line(by_class, factors.sum().item(), source.class_names)
    print(line, file=sys.stderr)
    return factors


def substitutes(config: ml_collections.ConfigDict) -> dict[int, str] | None:
    """Returns `read_batches`' argument `substituted` for the policy `config.data.on_error`."""
    return {} if config.data.on_error == "substitute" else None


def substituted_line(source: DetectionSource, substituted: dict[int, str]) -> str:
    """Returns a sentence about the images that were replaced by others; "" if there is none."""
    if not substituted:
        return ""
    places = sorted(substituted)
    named = "; ".join(substituted[place] for place in places[:3])
    more = f"; and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"{plural(len(places), 'image')} of {source.spec} could not be read; the next readable "
        f"image was used instead (config.data.on_error): {named}{more}"
    )


def to_device(
    batches: Generator[Batch, None, None], put: Callable[[Batch], T], depth: int = 2
) -> Generator[T, None, None]:
    """Applies `put` (the transfer) ahead of use.

    Args:
        batches: batches on the host; closed when this iterator ends or is closed.
        put: starts the transfer of a batch and returns without waiting for it.
        depth: number of batches on the device at a time, including the one handed out last.

    Yields:
        The results of `put`, in order.
    """
    ahead: collections.deque[T] = collections.deque()
    with contextlib.closing(batches):
        for batch in batches:
            ahead.append(put(batch))
            if len(ahead) >= depth:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()


def _empty_batch(rows: int, canvas: tuple[int, int], max_boxes: int) -> Batch:
    """Returns a batch of black images of the canvas's size, without boxes, of id −1."""
    size = np.broadcast_to(np.array(canvas, np.int32), (rows, 2))
    return {
        "image": _aligned_zeros((rows, *canvas, 3)),
        "size": size.copy(),
        "original_size": size.copy(),
        "boxes": np.zeros((rows, max_boxes, 4), np.float32),
        "labels": np.zeros((rows, max_boxes), np.int32),
        "ignore": np.zeros((rows, max_boxes), bool),
        "id": np.full(rows, -1, np.int32),
    }


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 zeros at a multiple of 64 bytes, which JAX on CPU uses without a copy."""
    size = math.prod(shape)
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)
