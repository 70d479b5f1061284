"""The only way from the core to an application: data sets that are prepared at first use.

Training on the embedded set or on `config.data.folder` starts with one command. So a data set that
is missing may be made, and the error about one that cannot be made says how to get it. Both are the
work of `scratchdet_jax.datasets`, which this module imports by name, and only then.
"""

import importlib
from typing import Protocol, cast

import ml_collections

APPLICATION = "scratchdet_jax.datasets.first_use"


class Provider(Protocol):
    """What the application does for the core."""

    def provide(self, name: str, data_dir: str) -> bool:
        """Makes the data set NAME[/CONFIG] in `data_dir`; returns whether it could."""
        ...

    def prepare_folder(self, settings: ml_collections.ConfigDict, name: str) -> None:
        """Prepares `settings.folder` as voc_folder/NAME in `settings.dir`, unless it exists."""
        ...

    def how_to_provide(self, name: str, data_dir: str) -> str:
        """Returns the commands that create a missing data set, as the end of a sentence."""
        ...

    def substitute_error(
        self, settings: ml_collections.ConfigDict, fields: tuple[str, ...], dataset: str
    ) -> Exception | None:
        """Returns the error that names what to download, and what stands in for it; or None."""
        ...


def provider() -> Provider:
    """Imports the application."""
    return cast(Provider, importlib.import_module(APPLICATION))
