"""Examines a data set before training.

python -m scratchdet_jax.tools.doctor DATASET [options]

The report is printed; --html writes it as one page with pictures. The recipe gives anchors, image
size, canvas and augmentation, and any field of it can be overridden, as
--config.anchors.min_percent="(5,12,28,44,60,76)".
"""

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import augment_options
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools.doctor.census import (
    Census,
    look_closer,
    select_images,
    size_on_canvas,
    take_census,
    without_ignored,
)
from scratchdet_jax.tools.doctor.findings import find
from scratchdet_jax.tools.doctor.fit import fit_anchors, fit_augmented, make_levels, what_if
from scratchdet_jax.tools.doctor.measure import Recipe, make_report
from scratchdet_jax.tools.doctor.opening import Opened, open_dataset
from scratchdet_jax.tools.doctor.page import Gallery, to_html
from scratchdet_jax.tools.doctor.pictures import photo, training_samples
from scratchdet_jax.tools.doctor.report import Report
from scratchdet_jax.tools.doctor.text import to_text

_DRAWS = 4  # augmentations of each image
_FIRST_PERCENTS = (3.0, 4.0, 5.0, 7.0, 10.0, 14.0)  # anchor sizes to try
_PAIRS_SHOWN = 8


def main(argv: Sequence[str]) -> None:
    """Parses the command line, examines, prints and writes."""
    started = time.perf_counter()
    options, config = _parse(argv)
    validate(config, device_count=1)
    for flag in ("html", "json"):
        if path := getattr(options, flag):
            _write(Path(path), "", flag)  # better now than after minutes
    opened = open_dataset(options.dataset, options.data_dir or config.data.dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boxes left out, which the report lists
        report, census = examine(options.dataset, opened, config, options.images)
        gallery = _gallery(report, census, opened, config, options) if options.html else None
    report.seconds = time.perf_counter() - started
    print(to_text(report))
    if gallery:
        _write(Path(options.html), to_html(report, gallery), "html")
        print(f"page: {options.html}")
    if options.json:
        _write(Path(options.json), json.dumps(report.to_dict(), indent=1) + "\n", "json")


def examine(
    dataset: str, opened: Opened, config: ml_collections.ConfigDict, most_images: int
) -> tuple[Report, Census]:
    """Measures a data set.

    Args:
        dataset: its name on the command line.
        opened: its splits.
        config: a run's config.
        most_images: if there are more, so many are drawn, the same in every run, for all that needs
            decoding or anchors.

    Returns:
        The report with its findings, and the census it rests on.
    """
    levels = make_levels(config)
    census = take_census(opened.splits, config.data.threads)
    chosen = np.flatnonzero(census.distinct)
    if len(chosen) > most_images:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, most_images, replace=False))
    closer = look_closer(census, opened.splits, chosen, config.data.threads)

    table, index = select_images(census.table, chosen)
    table = table._replace(sizes=size_on_canvas(table.sizes, tuple(config.data.canvas)))
    threshold, keep = config.loss.match_iou, config.data.train_on_ignored
    trained, kept = (table, np.arange(len(index))) if keep else without_ignored(table)
    before = fit_anchors(levels, trained, threshold)
    after, left = fit_augmented(
        levels,
        table,
        threshold,
        augment_options(config),
        seed=config.seed,
        draws=_DRAWS,
        keep_ignored=keep,
    )
    report = make_report(
        dataset,
        Recipe(config.name, tuple(config.data.canvas), config.data.max_boxes, threshold, keep),
        levels,
        census,
        closer,
        before._replace(source=index[kept[before.source]]),
        after,
        left[:, np.diff(table.starts) > 0],
        what_if(config, trained.boxes, after.boxes[::_DRAWS], _FIRST_PERCENTS),
        opened.prepared,
    )
    report.findings = find(report)
    return report, census


def _gallery(
    report: Report,
    census: Census,
    opened: Opened,
    config: ml_collections.ConfigDict,
    options: argparse.Namespace,
) -> Gallery:
    """The pictures of the page."""
    sources = list(opened.splits.values())

    def example(image: int) -> dict:
        return sources[census.split[image]][int(census.position[image])]

    def pair(images: Sequence[int], names: Sequence[str]) -> list:
        return [photo(example(i), name, 260) for i, name in zip(images, names, strict=True)]

    crowded = [photo(example(i), f"{name}: {n} boxes", 520) for i, name, n in report.crowded]
    unreached = [
        photo(
            example(b.image),
            f"{b.file}: {b.class_name} {b.width:.0f}×{b.height:.0f} px, IoU {b.best_iou:.2f}",
            300,
            b.box - int(census.table.starts[b.image]),
        )
        for b in report.unreached[:_PAIRS_SHOWN]
    ]
    return Gallery(
        crowded=[picture for picture in crowded if picture],
        unreached=[picture for picture in unreached if picture],
        groups=[pair(g.images[:2], g.names[:2]) for g in report.groups[:_PAIRS_SHOWN]],
        near=[pair((p.first, p.second), p.names) for p in report.near[:_PAIRS_SHOWN]],
        samples=training_samples(opened.training, config, options.samples),
    )


def _write(path: Path, text: str, flag: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"--{flag}={path} cannot be written ({error.strerror}): choose another place"
        ) from None


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    parser = argparse.ArgumentParser(
        prog=argv[0],
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="NAME[/CONFIG], with all its splits, or NAME[/CONFIG]:SPLIT[,…], as config.data.train",
    )
    parser.add_argument("--data_dir", help="where prepared data sets lie (default: the recipe's)")
    parser.add_argument("--config", metavar="FILE", help="recipe (default: configs/voc300.py)")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with pictures")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--samples", type=_whole, default=24, help="augmented samples on the page (default: 24)"
    )
    parser.add_argument(
        "--images",
        type=_whole,
        default=20_000,
        help="decode at most so many images, drawn at random (default: 20000)",
    )
    options, rest = parser.parse_known_args(argv[1:])
    if options.config:
        rest = [f"--config={options.config}", *rest]
    default = defaults.get_config()
    default.name = "voc300"  # the defaults are that recipe
    return options, cli.parse_config([argv[0], *rest], default)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
