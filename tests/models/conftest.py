"""What the tests of the networks share."""

import ml_collections
import pytest


@pytest.fixture
def make_config():
    """A function that gives `config.model` with the fields named replaced."""

    def make(**fields):
        config = ml_collections.ConfigDict(
            {
                "backbone": "resnet",
                "depth": 34,
                "stem": "root",
                "stem_convs": 3,
                "stem_stride": 1,
                "width": 1.0,
                "preactivation": False,
                "norm": "batch",
                "head_norm": "batch",
                "norm_span": 0,
                "norm_decay": 0.9,
                "norm_epsilon": 1e-5,
                "extra_channels": 128,
                "extra_strides": (2, 2, 2, 2),
                "last_convolutions": False,
                "dtype": "float32",
            }
        )
        with config.ignore_type():
            config.update(fields)
        return config

    return make
