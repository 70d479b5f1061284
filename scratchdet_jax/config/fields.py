"""The fields of a config by dotted name, and values derived from them."""

import re

import ml_collections

from scratchdet_jax.errors import UserError

# Fields that change neither the parameters nor the AP of a run, so they may differ when a run is
# resumed. data.max_boxes is one: random numbers do not depend on the number of slots.
WITHOUT_EFFECT = (
    "name",
    "parallel",
    "data.dir",
    "data.threads",
    "data.max_boxes",
    "data.on_error",
    "eval.every_steps",
    "eval.batch_size",
    "eval.stop_after",
    "eval.log_pictures",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "stall_seconds",
    "compilation_cache",
)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns all fields of a config by dotted name."""
    leaves: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def run_ends(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the updates after which the run, and then each of its extensions, is complete.

    The first is `num_steps`, or the number that `train_images` gives; `extend` gives the others.

    Raises:
        UserError: an entry of `extend` is malformed or not above the one before it.
    """
    ends = [config.num_steps or config.train_images // config.batch_size]
    for entry in filter(None, map(str.strip, config.extend.split(","))):
        match = re.fullmatch(r"(\d+(?:\.\d*)?)x|(\d+)", entry)
        if not match:
            raise UserError(
                f"config.extend has the entry {entry!r}: write the new total as a multiple of the "
                "run's length, such as 1.5x, or as a number of images; join several by commas"
            )
        factor, images = match.groups()
        end = round(float(factor) * ends[0]) if factor else int(images) // config.batch_size
        if end <= ends[-1]:
            raise UserError(
                f"config.extend has the entry {entry!r}, a total of {end} updates, but the run is "
                f"complete after {ends[-1]}: choose a larger total"
            )
        ends.append(end)
    return tuple(ends)


def number_of_steps(config: ml_collections.ConfigDict) -> int:
    """Returns the number of updates in a complete run, its extensions included."""
    return run_ends(config)[-1]


def get(config: ml_collections.ConfigDict, name: str) -> object:
    """The value of a field by dotted name."""
    for part in name.split("."):
        config = config[part]
    return config
