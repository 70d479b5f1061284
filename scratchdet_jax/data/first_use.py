"""The way from the core to the preparation of data: data sets that are prepared at first use.

Training on the embedded set or on `config.data.folder` starts with one command. So a data set that
is missing may be made, and the error about one that cannot be made says how to get it. Both are the
work of `scratchdet_jax.datasets`, which this module imports by name, and only then.
"""

import importlib
from typing import Any

APPLICATION = "scratchdet_jax.datasets.first_use"


def provider() -> Any:
    """Imports the application: the module whose functions `records` and `sources` call."""
    return importlib.import_module(APPLICATION)
