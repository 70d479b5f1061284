"""`config.data` → an opened data set; a user's own folder is prepared at first use."""

from pathlib import Path

import ml_collections

from scratchdet_jax.data.builders.voc_folder import dataset_name, prepare_voc_folder
from scratchdet_jax.data.records import DetectionSource, open_source
from scratchdet_jax.errors import UserError


def open_split(settings: ml_collections.ConfigDict, field: str) -> DetectionSource:
    """Opens `config.data.train` or `config.data.eval` (`field`).

    With `config.data.folder` set, the field names a split of that folder, which is prepared
    into `config.data.dir` at first use.

    Raises:
        UserError: the field is empty, or the data set or split does not exist.
    """
    spec = settings[field]
    if not spec:
        raise UserError(
            f"config.data.{field} is empty: name a data set and split, such as voc/2007:test"
        )
    if ":" in spec:
        return open_source(spec, settings.dir)
    if not settings.folder:
        raise UserError(
            f"config.data.{field} is {spec!r}: set config.data.folder to a folder in VOC layout "
            "that has this split, or name a data set, such as voc/2007:test"
        )
    name = dataset_name(settings.folder)
    prepared = Path(settings.dir) / "voc_folder" / name
    if Path(settings.folder).is_dir() or not prepared.is_dir():
        prepare_voc_folder(Path(settings.folder), Path(settings.dir), name)
    spec = f"voc_folder/{name}:{spec}"
    return open_source(spec, settings.dir)
