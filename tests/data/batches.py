"""The loader's batches [b, …] in the orders of training and evaluation, for the tests."""

import ml_collections

from scratchdet_jax.data.loading import TrainingOrder, evaluation_order, read_batches

PROCESS = ("process_index", "process_count")


def train_batches(source, *, batch_size, seed, start_step=0, factors=None, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    order = TrainingOrder(len(source), seed, batch_size, start_step, factors=factors, **process)
    return batches(source, order, order.rows, **options)


def eval_batches(source, *, batch_size, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    rows = batch_size // process.get("process_count", 1)
    return batches(source, evaluation_order(len(source), batch_size, **process), rows, **options)


def batches(source, order, rows, *, canvas, max_boxes, threads=0, substituted=None):
    settings = {"canvas": canvas, "max_boxes": max_boxes, "threads": threads}
    data = ml_collections.ConfigDict(settings)
    return read_batches(source, order, (rows,), data, substituted)
