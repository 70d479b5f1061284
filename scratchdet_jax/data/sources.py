"""`config.data` → an opened data set; a user's own folder is prepared at first use."""

import re
import shlex
from pathlib import Path

import ml_collections

from scratchdet_jax.data.first_use import provider
from scratchdet_jax.data.records import DetectionSource, parse_spec
from scratchdet_jax.data.tfds_dataset import NoDataSetError, NoSplitError
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.paths import local_path, user_path

NO_EVALUATION = (
    "no evaluation: config.data.eval= is empty; for mAP while training, name a split there "
    "(NAME:SPLIT); scratchdet prepare divides a set of one split with --val=0.2"
)


def chosen_on_test(config: ml_collections.ConfigDict) -> str:
    """Returns a warning if the best checkpoint of a run is chosen on a test split; else "".

    Such a figure is too good: the split that is reported has taken part in a choice.
    """
    spec = config.data.eval
    chooses = spec and config.eval.every_steps and config.eval.metric != "none"
    splits = [part.split for part in parse_spec(spec)] if _names_data_sets(spec) else [spec]
    names = [name.strip() for split in splits for name in split.split("+")]
    if not chooses or not any(re.match(r"test(dev|-dev)?\b", name) for name in names):
        return ""
    return (
        f"the best checkpoint is chosen on the test split itself ({config.data.eval}): a published "
        "figure takes the last one, eval.py --checkpoint=latest"
    )


def open_split(settings: ml_collections.ConfigDict, field: str) -> DetectionSource:
    """Opens `config.data.train` or `config.data.eval` (`field`).

    With `config.data.folder` set, the field names a split of that folder, which is prepared
    into `config.data.dir` at first use. If it was prepared before, the choices made then are kept.

    Raises:
        UserError: the field is empty, or the data set or split does not exist.
    """
    spec = settings[field]
    names_set = _names_data_sets(spec)
    if not spec or not (settings.folder or names_set):
        raise UserError(
            f"config.data.{field} is {spec!r}: name a data set and split, such as voc/2007:test, "
            "or a split of the folder in VOC layout that config.data.folder names"
        )
    if not names_set:
        spec = f"voc_folder/{_prepared_folder(settings)}:{spec}"
    try:
        return DetectionSource(spec, settings.dir, settings.cache)
    except NoDataSetError as error:
        fields = ("train", "eval") if field == "train" else ("eval",)
        substitute = provider().substitute_error(settings, fields, error.dataset)
        raise substitute or error from None
    except NoSplitError as error:
        raise UserError(f"config.data.{field}: {error}{_advice(settings, field, error)}") from None


def open_splits(
    config: ml_collections.ConfigDict,
) -> tuple[DetectionSource, DetectionSource | None]:
    """Opens the training split and, if one is named, the evaluation split.

    Both have boxes, of the same classes. Data sets that the program can make or prepare itself are
    prepared at first use.

    Raises:
        UserError: a split cannot be opened, has no boxes, or does not fit the config or the other.
    """
    train = open_split(config.data, "train")
    train.require_boxes("config.data.train")
    check_slots(config.data, "train", train)
    if not config.data.eval:
        return train, None
    evaluation = open_split(config.data, "eval")
    evaluation.require_boxes("config.data.eval")
    if train.class_names != evaluation.class_names:
        raise UserError(
            f"config.data.train {train.spec} has classes {', '.join(train.class_names)}, but "
            f"config.data.eval {evaluation.spec} has {', '.join(evaluation.class_names)}: they "
            "must be the same, in the same order"
        )
    check_slots(config.data, "eval", evaluation)
    return train, evaluation


def check_batch_size(
    config: ml_collections.ConfigDict, source: DetectionSource, devices: int
) -> None:
    """Refuses a batch that would hold images of the training split twice."""
    if config.batch_size <= len(source):
        return
    part = devices * config.accumulate_steps
    largest = len(source) // part * part
    raise UserError(
        f"config.batch_size is {config.batch_size}, but config.data.train {source.spec} has only "
        f"{plural(len(source), 'image')}: "
        + (f"use at most {largest}" if largest else f"it needs at least {part} images")
    )


def dataset_name(folder: str | Path) -> str:
    """Returns the default name of a folder's data set: VOCdevkit/VOC2007 → voc2007."""
    name = re.sub(r"[^\w.+-]+", "_", local_path(folder).resolve().name.lower()).strip("._+-")
    return name or "folder"


def _names_data_sets(spec: str) -> bool:
    """Returns whether a spec is NAME:SPLIT, …, and not a split of the user's folder."""
    return ":" in re.sub(r"\[[^\]]*\]", "", spec)  # not the colon of a slice, train[:80%]


def check_slots(settings: ml_collections.ConfigDict, field: str, data: DetectionSource) -> None:
    """Raises UserError if an image of a split has more boxes than `config.data.max_boxes`.

    The loader would refuse the image as well, perhaps after hours. `settings` is `config.data`, and
    `field` names the split there.
    """
    slots = settings.max_boxes
    most, image = data.most_boxes(slots)
    if most > slots:
        raise UserError(
            f"{image} of config.data.{field} {data.spec} has {most} boxes, more than "
            f"config.data.max_boxes = {slots}: set it to {most} or more"
        )


def _prepared_folder(settings: ml_collections.ConfigDict) -> str:
    """Names the data set made of `config.data.folder`; prepares it if necessary."""
    name = dataset_name(settings.folder)
    prepared = user_path(settings.dir) / "voc_folder" / name
    if local_path(settings.folder).is_dir() or not prepared.is_dir():
        provider().prepare_folder(settings, name)
    return name


def _advice(settings: ml_collections.ConfigDict, field: str, error: NoSplitError) -> str:
    """Advises what to do if a set has only one split: divide it, or train without evaluation."""
    if len(error.known) != 1:
        return ""
    kind, _, name = error.dataset.partition("/")
    given = {"voc_folder": "voc", "coco_folder": "coco", "yolo_folder": "yolo"}.get(kind)
    advice = []
    if given:
        folder = f" --folder={shlex.quote(settings.folder)}" if settings.folder else " …"
        where = f" --name={name} --data_dir={shlex.quote(str(settings.dir))}"
        command = f"scratchdet prepare {given}{folder}{where} --val=0.2 --force"
        advice.append(f"divide it with `{command}`")
    if field == "eval":
        advice.append("train without evaluation, with --config.data.eval=")
    return f": {', or '.join(advice)}" if advice else ""
