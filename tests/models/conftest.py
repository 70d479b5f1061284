"""What the tests of the networks share."""

import pytest

from scratchdet_jax.config import defaults


@pytest.fixture
def make_config():
    """A function that returns the default `config.model` with some fields replaced."""

    def make(**fields):
        config = defaults.get_config().model
        with config.ignore_type():
            config.update(fields)
        return config

    return make
