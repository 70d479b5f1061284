"""Opens the splits of a prepared data set by its name on the command line."""

import collections
import json
import os
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from scratchdet_jax.data.records import (
    DetectionSource,
    SpecPart,
    open_part,
    open_source,
    parse_spec,
)
from scratchdet_jax.reports.page.layout import Named


class Opened(NamedTuple):
    """An open data set.

    Attributes:
        splits: by their name in the report.
        training: what training would read: the full spec, or the split "train", or the first split.
        prepared: defects found by the preparation, by kind; empty if it kept no report.
    """

    splits: dict[str, DetectionSource]
    training: DetectionSource
    prepared: dict[str, Named]


def open_dataset(dataset: str, data_dir: str) -> Opened:
    """Opens all splits of `NAME[/CONFIG]`, or a spec as in `config.data.train`.

    Parts of a spec joined by + are separate splits.

    Raises:
        UserError: the data set or a split does not exist; see open_source.
    """
    if ":" not in dataset:
        directory = _directory(dataset, data_dir)
        known = tfds.builder_from_directory(directory).info.splits
        splits = {
            name: open_source(f"{dataset}:{name}", data_dir)
            for name, info in known.items()
            if info.num_examples
        }
        training = splits.get("train", next(iter(splits.values())))
        return Opened(splits, training, _preparation(directory))
    training = open_source(dataset, data_dir)
    splits, prepared = {}, {}
    parts = parse_spec(dataset)
    several = len({(part.name, part.directory) for part in parts}) > 1
    for part in parts:
        at = f"@{part.directory}" if part.directory else ""
        for piece in part.split.split("+"):
            spec = f"{part.name}:{piece.strip()}{at}"
            splits[spec if several else piece.strip()] = open_source(spec, data_dir)
        directory = _directory(part.name, os.path.expanduser(part.directory) or data_dir)
        prepared |= _preparation(directory)
    return Opened(splits, training, prepared)


def _directory(name: str, data_dir: str) -> Path:
    """The directory of a data set's files."""
    return Path(open_part(SpecPart(name, "all", ""), data_dir).shards[0].filename).parent


def _preparation(directory: Path) -> dict[str, Named]:
    """What was skipped or repaired according to the builder's report.json, by kind."""
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        for defect in report["defects"]:
            kinds[defect["kind"]].append(f"{defect['file']}: {defect['reason']}")
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # not prepared by the builders of this package
    return {kind: Named.first(texts) for kind, texts in kinds.items()}
