"""The fields of a config by dotted name, and values derived from them."""

import ml_collections

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
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "stall_seconds",
    "compilation_cache",
)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    """All fields of a config by dotted name."""
    leaves: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def number_of_steps(config: ml_collections.ConfigDict) -> int:
    """Updates in a complete run: `num_steps`, or the number that `train_images` gives."""
    return config.num_steps or config.train_images // config.batch_size


def get(config: ml_collections.ConfigDict, name: str) -> object:
    """The value of a field by dotted name."""
    for part in name.split("."):
        config = config[part]
    return config
