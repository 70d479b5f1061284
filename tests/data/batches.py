"""The loader's batches [b, …] in the orders of training and evaluation, for the tests."""

import ml_collections

from scratchdet_jax.data.loading import EvaluationOrder, TrainingOrder, read_batches

PROCESS = ("process_index", "process_count")


def train_batches(source, *, batch_size, seed, start_step=0, factors=None, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    order = TrainingOrder(len(source), seed, batch_size, start_step, factors=factors, **process)
    return batches(source, order, **options)


def eval_batches(source, *, batch_size, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    return batches(source, EvaluationOrder(len(source), batch_size, **process), **options)


def batches(source, order, *, canvas, max_boxes, threads=0, substituted=None):
    settings = {"canvas": canvas, "max_boxes": max_boxes, "threads": threads}
    data = ml_collections.ConfigDict(settings)
    return read_batches(source, order, (order.rows,), data, substituted)
