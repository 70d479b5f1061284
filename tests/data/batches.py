"""The loader's batches [b, …] in the orders of training and evaluation, for the tests."""

from scratchdet_jax.data.loading import EvaluationOrder, TrainingOrder, read_batches

PROCESS = ("process_index", "process_count")


def train_batches(source, *, batch_size, seed, start_step=0, factors=None, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    order = TrainingOrder(len(source), seed, batch_size, start_step, factors=factors, **process)
    return read_batches(source, order, (order.rows,), **options)


def eval_batches(source, *, batch_size, **options):
    process = {name: options.pop(name) for name in PROCESS if name in options}
    order = EvaluationOrder(len(source), batch_size, **process)
    return read_batches(source, order, (order.rows,), **options)
