"""A model's arrays are found in a checkpoint, by name or under a well-known key."""

import sys

import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.interop import torch_files
from scratchdet_jax.interop.torch_files import read_arrays

ARRAYS = {"backbone.conv1.weight": np.ones((2, 3)), "bbox_head.bias": np.arange(4.0)}
OTHER = {name: 7 + value for name, value in ARRAYS.items()}  # the wrong ones
OPTIMIZER = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """`read_arrays` of a file with this content, without PyTorch."""

    def read_content(content):
        monkeypatch.setattr(torch_files, "_read_torch", lambda path: content)
        (tmp_path / "x.pth").touch()
        return read_arrays(tmp_path / "x.pth")

    return read_content


def prefixed(prefix):
    return {prefix + name: value for name, value in ARRAYS.items()}


@pytest.mark.parametrize(
    "content",
    [
        ARRAYS,
        ARRAYS | {"n_averaged": np.array(5)},
        {"state_dict": ARRAYS, "meta": {"epoch": np.float64(3)}},
        {"model": ARRAYS, "optimizer": OPTIMIZER, "iteration": 9},
        {"model": ARRAYS, "model_ema": OTHER, "net": OTHER},
        {"model": ARRAYS, "scaler": {"scale": np.ones(())}},
        {"model_state_dict": prefixed("module."), "loss": np.ones(())},
        prefixed("module."),
    ],
)
def test_checkpoints_of_the_usual_programs(content, read):
    found = read(content).arrays
    assert found.keys() == ARRAYS.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_a_prefix_of_some_names_is_kept(read):
    state = {"module.a": np.ones(1), "a": np.ones(1)}
    assert read(state).arrays.keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([np.ones(2)], "holds no arrays by name, but list: it must be a state dict"),
        ({}, "but []: "),
        ({"epoch": 1, "lr": 2, "a": 3, "b": 4, "c": 5}, "but ['epoch', 'lr', 'a', 'b', 'c']: "),
        ({"optimizer": OPTIMIZER}, "but ['optimizer']: "),
        ({"generator": ARRAYS, "critic": OTHER}, "but ['generator', 'critic']: "),
        ({"model": {"state_dict": ARRAYS}}, "under state_dict, model_state_dict or model"),
    ],
)
def test_other_contents_are_one_sentence(content, problem, read):
    with pytest.raises(UserError, match=r"x\.pth holds no arrays") as error:
        read(content)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_libraries_are_reported(tmp_path, monkeypatch):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(UserError, match=f"{name}: there is no such file"):
            read_arrays(tmp_path / name)
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.flax", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-torch\.txt"):
        read_arrays(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.safetensors needs .* pip install safetensors"):
        read_arrays(tmp_path / "none.safetensors")
