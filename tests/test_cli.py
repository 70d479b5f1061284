"""The command line: how mistyped overrides are reported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.config import recipes
from scratchdet_jax.errors import UserError

ROOT = Path(__file__).parent.parent


define_flags = flags.FlagValues  # as of a program that takes a config


def parsed(*arguments):
    """The config of a command line."""
    return cli.parse_config(["program", *arguments], define_flags())


def test_overrides_are_applied_with_their_types():
    config = parsed(
        "--config=configs/voc300.py",
        "--config.batch_size=256",
        "--config.model.width",
        "0.5",
        "--config.model.extra_strides=(2,2,1,1)",
        "--config.augment.crop=false",
    )
    assert config.batch_size == 256
    assert config.model.width == 0.5
    assert config.model.extra_strides == (2, 2, 1, 1)
    assert config.augment.crop is False


def test_the_last_of_repeated_overrides_counts_whatever_their_type():
    config = parsed(
        "--config=configs/voc300.py",
        "--config.batch_size=4",
        "--config.model.extra_strides=(2,2,2,2)",
        "--config.data.canvas",
        "(300,400)",
        "--config.eval.multiscale=300",
        "--config.model.extra_strides=(2,2,1,1)",
        "-config.data.canvas=600,600",
        "--config.eval.multiscale=300+300f",
        "--config.batch_size=8",
    )
    assert config.batch_size == 8
    assert config.model.extra_strides == (2, 2, 1, 1)
    assert config.data.canvas == (600, 600)
    assert config.eval.multiscale == ("300+300f",)
    with pytest.raises(UserError, match=r"config\.data\.canvas"):
        parsed("--config=configs/voc300.py", "--config.data.canvas=3,4", "--config.data.canvas")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.batch_sze=3", r"no field config\.batch_sze; did you mean config\.batch_size"),
        ("--config.widht=0.5", r"did you mean config\.model\.width"),
        ("--config.learning_rate=0.1", r"did you mean .*config\.optimizer\.learning_rate"),
        ("--config.model=3", r"config\.model: it is a group.*model\.depth"),
        ("--config.batch_size=many", r"config\.batch_size=many"),
        ("--config.model.width=wide", r"config\.model\.width=wide"),
        ("--config.augment.crop=perhaps", r"config\.augment\.crop=perhaps"),
        ("--config.model.extra_strides=a,b", r"config\.model\.extra_strides takes numbers"),
        ("--confg.batch_size=3", r"confg"),
        ("stray", r"unexpected argument 'stray'"),
    ],
)
def test_a_wrong_override_is_reported_with_its_near_misses(override, message):
    with pytest.raises(UserError, match=message):
        parsed("--config=configs/voc300.py", override)


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("--batch_size=4", "batch_size"),
        ("--batch-size=4", "batch_size"),
        ("--num_steps=9", "num_steps"),
        ("--learning_rate=0.1", "optimizer.learning_rate"),
    ],
)
def test_a_flag_that_is_a_field_is_answered_with_the_field(flag, field):
    name = flag.lstrip("-").partition("=")[0]
    with pytest.raises(UserError, match=rf"'{name}'.*; the config has --config\.{field}\b"):
        parsed("--config=configs/voc300.py", flag)


@pytest.mark.parametrize("name", ["voc300", "voc300.py", "configs/voc300.py"])
def test_a_recipe_by_name_is_that_of_the_folder_or_the_installed_one(name, monkeypatch, tmp_path):
    assert parsed(f"--config={name}").name == "voc300"
    installed = tmp_path / "installed"
    shutil.copytree(ROOT / "configs", installed)
    monkeypatch.setattr(recipes, "_installed_recipes", lambda: installed)
    monkeypatch.chdir(tmp_path)
    assert parsed(f"--config={name}").name == "voc300"
    assert parsed("--config=bn_ablation:head_0.01").optimizer.learning_rate == 0.01
    assert parsed("--config=mmdet_release/ssd300").image_size == 300
    with pytest.raises(UserError, match=r"no recipe voc30 \(recipes installed: .*voc300"):
        parsed("--config=voc30")
    (tmp_path / "configs").mkdir()  # ./configs comes first
    source = (ROOT / "configs/voc300.py").read_text()
    (tmp_path / "configs/voc300.py").write_text(source.replace('"voc300"', '"mine"', 1))
    assert (
        parsed(f"--config={name}").to_dict() != parsed(f"--config={installed}/voc300.py").to_dict()
    )


def test_flags_that_decide_on_the_config_are_parsed_before_it():
    values = flags.FlagValues()
    cli.define_process_flags(values)
    argv = ["program", "--config.data.eval", "a:b", "--no_flag", "--process_id=3"]
    assert cli.process_settings(cli.parse_early(argv, values)) == {
        "coordinator": None,
        "num_processes": None,
        "process_id": 3,
        "join_seconds": None,
    }
    with pytest.raises(UserError, match="--process_id=x"):
        cli.parse_early(["program", "--process_id=x"], values)


def test_a_missing_recipe_lists_the_recipes():
    with pytest.raises(UserError, match=r"configs/voc300\.py"):
        parsed("--config=configs/voc30.py")
    with pytest.raises(UserError, match=r"no recipe given.*configs/shapes\.py"):
        parsed()


def test_the_program_prints_one_sentence_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "train.py", "--config=configs/shapes.py", "--config.modle.depth=18"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no field config.modle.depth")
    assert "Traceback" not in done.stderr


LOADED = "print(jax.default_backend(), 'libtpu' in open('/proc/self/maps').read())"
PROGRAMS = {  # where a program imports JAX
    "in main": "from scratchdet_jax import cli\n"
    "def main(argv):\n"
    "    import jax\n"
    f"    {LOADED}\n"
    "cli.run(main, ['program'])",
    "in a tool": "import sys\n"
    "sys.argv = ['-m']\n"
    "import scratchdet_jax.tools\n"
    f"import jax\n{LOADED}",
    "in a benchmark": f"import sys\nsys.argv = ['-m']\nimport benchmarks\nimport jax\n{LOADED}",
}


@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_does_not_load_libtpu_where_there_is_no_tpu(code):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 only")
    tests_own = ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_")  # importing libtpu sets the last
    environment = {k: v for k, v in os.environ.items() if not k.startswith(tests_own)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.stdout.split()[0] == "tpu":
        pytest.skip("this machine has a TPU")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == "False"
