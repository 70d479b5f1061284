"""Repeat-factor sampling against plain loops; the order for any processes, start and resume."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.data.loading import TrainingOrder
from scratchdet_jax.data.repeating import Repeats, class_factors, image_factors, repeated_line
from tests.training.small_run import assert_same_run, lines, small_config, train, train_in_parts

LABELS = st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=20)


def slow_factors(labels, threshold):
    """LVIS's definition as detectron2 writes it."""
    frequency = {}
    for own in labels:
        for category in set(own):
            frequency[category] = frequency.get(category, 0) + 1 / len(labels)
    repeat = {c: max(1.0, math.sqrt(threshold / f)) for c, f in frequency.items()}
    return [max({repeat[c] for c in own}, default=1.0) for own in labels]


@given(LABELS, st.floats(0.001, 1))
def test_an_images_factor_is_the_largest_of_its_classes(labels, threshold):
    arrays = [np.array(own, np.int32) for own in labels]
    found = image_factors(arrays, class_factors(arrays, 4, threshold))
    np.testing.assert_allclose(found, slow_factors(labels, threshold), rtol=1e-12)


FACTORS = st.lists(st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.7]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    factors=FACTORS,
    rows=st.integers(1, 4),
    processes=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_stream_is_all_epochs_one_after_another_for_any_processes_and_start(
    factors, rows, processes, start, seed
):
    factors, batch = np.array(factors), rows * processes
    end = (start + 3) * batch
    stream, epoch = [], 0
    while len(stream) < end:
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, epoch, 1))))
        images = []
        for i, factor in enumerate(factors):
            extra = random.random_sample() < factor - math.floor(factor)
            images += [i] * (math.floor(factor) + extra)
        order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, epoch))))
        stream += order.permutation(images).tolist()
        epoch += 1
    parts = [
        TrainingOrder(len(factors), seed, batch, start, p, processes, factors)
        for p in range(processes)
    ]
    for step in reversed(range(3)):
        joined = [part[step * rows + r] for part in parts for r in range(rows)]
        assert joined == stream[(start + step) * batch : (start + step + 1) * batch]


def test_an_image_comes_as_often_as_its_factor_says_on_average():
    factors = np.array([1.0, 1.3, 2.75, 2.0])
    repeats = Repeats(factors, seed=5)
    counts = np.array([np.bincount(repeats.indices(e), minlength=4) for e in range(2000)])
    np.testing.assert_allclose(counts.mean(0), factors, atol=0.04)
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()


def test_factors_of_one_leave_the_order_as_it_is():
    plain, repeated = TrainingOrder(13, 3, 4), TrainingOrder(13, 3, 4, factors=np.ones(13))
    assert [plain[i] for i in range(60)] == [repeated[i] for i in range(60)]


def test_the_line_names_the_rarest_classes():
    line = repeated_line(np.array([1.0, 2.0, 3.1623]), 1234.4, ("a", "b", "c"))
    assert line == "an epoch has 1,234 images on average; repeated classes: c 3.16x, b 2x"
    assert repeated_line(np.ones(1), 10, ("a",)).endswith("repeated classes: no class")


@pytest.mark.slow  # trains several runs
def test_a_run_with_repeated_images_resumes_exactly(tmp_path, monkeypatch, capsys):
    plain = small_config(tmp_path, monkeypatch, **{"accumulate_steps": 2})
    train(plain, tmp_path / "plain")
    assert "on average" not in capsys.readouterr().err
    fields = {"data.repeat_threshold": 1.0, "accumulate_steps": 2}
    config = small_config(tmp_path, monkeypatch, **fields)
    whole = train(config, tmp_path / "whole")
    assert "images on average; repeated classes: " in capsys.readouterr().err
    parts = train_in_parts(config, tmp_path / "parts", monkeypatch, 2, 4)
    assert_same_run((parts, tmp_path / "parts"), (whole, tmp_path / "whole"))
    assert lines(tmp_path / "plain", "train")[0] != lines(tmp_path / "whole", "train")[0]
