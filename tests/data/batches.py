"""The loader's batches [b, …] in the orders of training and evaluation, for the tests."""

import ml_collections

from scratchdet_jax.data.loading import TrainingOrder, eval_loader, read_batches

PROCESS = ("process_index", "process_count")


def train_batches(
    source, *, batch_size, seed, start_step=0, factors=None, substituted=None, **options
):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    order = TrainingOrder(len(source), seed, batch_size, start_step, factors=factors, **process)
    return read_batches(source, order, (order.rows,), settings(**options), substituted)


def eval_batches(source, *, batch_size, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    return eval_loader(settings(**options), source, batch_size, **process)


def settings(*, canvas, max_boxes, threads=0):
    """The fields of `config.data` that the loader reads."""
    return ml_collections.ConfigDict({"canvas": canvas, "max_boxes": max_boxes, "threads": threads})
