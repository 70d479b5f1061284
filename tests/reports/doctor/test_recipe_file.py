"""The advised anchors as a recipe that train.py takes."""

import pytest
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.config.defaults import get_config
from scratchdet_jax.config.validation import validate
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.doctor.anchors import WhatIf, recipe_text
from scratchdet_jax.tools import doctor
from tests.data.voc_layout import Folder, obj

ADVICE = WhatIf((5.0, 10.0), (10.0, 20.5), 0.9, 0.8)


def parse(*arguments):
    """The config of a command line."""
    return cli.parse_config(["train.py", *arguments], flags.FlagValues())


@pytest.mark.slow  # trains
def test_the_doctor_writes_a_recipe_that_trains_with_the_advised_anchors(tmp_path, capsys):
    folder = Folder(tmp_path / "mine")
    places = zip(range(2, 50, 7), range(2, 36, 5), strict=True)  # a tenth of each side
    boxes = [obj(box=(x, y, x + 6, y + 4)) for x, y in places]
    for name in "abcd":
        folder.both(name, *boxes)
    folder.split("train", "a", "c", "d").split("val", "b")
    prepare_voc_folder(folder.path, tmp_path / "data", "mine")
    path = tmp_path / "recipes" / "small_boxes.py"

    def examine(recipe):
        overrides = ["--config.image_size=96", "--config.data.canvas=(96,96)"]
        data = ["voc_folder/mine", f"--data_dir={tmp_path / 'data'}"]
        doctor.main(["doctor", *data, recipe, *overrides, f"--write_anchors={path}"])
        return capsys.readouterr().out

    told = examine("--config=configs/shapes.py")
    assert f"anchors: {path}, for train.py --config={path}" in told
    config = parse(f"--config={path}", "--config.batch_size=4")
    validate(config, device_count=1)
    assert (config.name, config.image_size, config.batch_size) == ("small_boxes", 96, 4)
    assert config.anchors.min_percent[0] < 14
    assert f"{config.anchors.min_percent[0]:g}" in told
    assert config.data.train == "shapes:train"
    with pytest.raises(UserError, match=r"--write_anchors .*small_boxes\.py exists"):
        examine("--config=configs/shapes.py")
    before = path.read_text()
    path.unlink()
    (tmp_path / "again.py").write_text(before)
    assert f"clearly help: {path} was not written" in examine(f"--config={tmp_path / 'again.py'}")
    assert not path.exists()


def test_a_recipe_from_the_defaults_keeps_overrides_and_hostile_names_are_harmless(tmp_path):
    config = get_config()
    config.model.extra_strides = (2, 1)
    config.optimizer.learning_rate = 0.5
    path = tmp_path / "plain.py"
    hostile = '"""\nraise SystemExit\n\\'
    path.write_text(recipe_text(path, ADVICE, hostile, "", config))
    found = parse(f"--config={path}")
    assert found.anchors.max_percent == (10.0, 20.5)
    assert found.model.extra_strides == (2, 1)
    assert found.optimizer.learning_rate == 0.5
    assert found.name == "plain"


def test_a_file_that_is_no_recipe_is_refused():
    with pytest.raises(UserError, match=r"--write_anchors anchors\.txt is no recipe"):
        doctor.main(["doctor", "any", "--write_anchors=anchors.txt"])
