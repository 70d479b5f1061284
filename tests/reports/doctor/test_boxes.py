import numpy as np
import pytest

from scratchdet_jax.reports.doctor.boxes import count_histogram, count_labels


@pytest.mark.parametrize("counts", [[0, 0, 1], [3, 1, 28], list(range(200)), [0], [5] * 300 + [90]])
def test_every_image_is_in_one_bin(counts):
    histogram = count_histogram(np.array(counts))
    assert sum(histogram["counts"]) == len(counts)
    labels = count_labels(histogram["edges"], max(counts))
    assert len(labels) == len(histogram["counts"]) <= 32
    for label, count in zip(labels, histogram["counts"], strict=True):
        low, _, high = label.rstrip("+").partition("–")
        top = np.inf if label.endswith("+") else int(high or low)
        assert count == sum(int(low) <= n <= top for n in counts)
