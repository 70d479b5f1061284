"""The formulas of the scaling tables against a simulated ring."""

import json

import pytest

from benchmarks.scaling import (
    Network,
    Reductions,
    read_reductions,
    ring_seconds,
    threshold,
    tree_seconds,
)
from scratchdet_jax.errors import UserError

NETWORK = Network("test", bandwidth=100.0, latency=0.5, peak=1.0)


def simulate_ring(values: list[list[float]], network: Network, item: float) -> float:
    """Sums n lists of n chunks of `item` bytes in place around a ring; returns the seconds."""
    n, clock = len(values), 0.0
    for turn in range(2 * (n - 1)):
        for chip, value in [(c, values[c][(c - turn) % n]) for c in range(n)]:
            peer, chunk = (chip + 1) % n, (chip - turn) % n
            values[peer][chunk] = value + (values[peer][chunk] if turn < n - 1 else 0)
        clock += network.latency + item / network.bandwidth
    return clock


@pytest.mark.parametrize("chips", [2, 3, 8])
def test_ring_seconds_equal_the_simulation(chips):
    values = [[float(c * chips + i) for i in range(chips)] for c in range(chips)]
    sums = [sum(column) for column in zip(*values, strict=True)]
    seconds = simulate_ring(values, NETWORK, item=30.0)
    assert values == [sums] * chips
    assert ring_seconds(30.0 * chips, chips, NETWORK) == pytest.approx(seconds)


def test_latency_counts_per_operation_and_bytes_once():
    assert ring_seconds(800.0, 4, NETWORK, 10) == pytest.approx(10 * 6 * 0.5 + 1.5 * 8)
    assert tree_seconds(100.0, 8, NETWORK, 10) == pytest.approx(6 * (10 * 0.5 + 1))
    assert ring_seconds(800.0, 1, NETWORK, 10) == tree_seconds(800.0, 1, NETWORK, 10) == 0


def test_threshold_is_the_first_power_of_two_above_the_limit():
    assert threshold(lambda n: n, 7.5) == "8"
    assert threshold(lambda n: n, 8.0) == "16"
    assert threshold(lambda n: 1.0, 1.0) == "never"


def test_counts_are_read_or_refused(tmp_path):
    path = tmp_path / "counts.json"
    record = {
        "gradients and loss sums": 1000,
        "BatchNorm statistics, forward and backward": 20,
        "all-reduce operations as compiled": 5,
    }
    path.write_text(json.dumps(record))
    assert read_reductions(str(path)) == Reductions(1000, 20, 4)
    path.write_text(json.dumps(record | {"BatchNorm statistics, forward and backward": 0}))
    with pytest.raises(UserError, match="norm_span 0"):
        read_reductions(str(path))
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a file of"):
        read_reductions(str(path))
