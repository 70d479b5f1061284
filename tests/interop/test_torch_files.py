"""A model's arrays are found in a checkpoint however a training program nested them."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_files import read_arrays, unwrap

ARRAYS = {"backbone.conv1.weight": np.ones((2, 3)), "bbox_head.bias": np.arange(4.0)}
OTHER = {name: 7 + value for name, value in ARRAYS.items()}  # the wrong ones
OPTIMIZER = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def prefixed(prefix, arrays=ARRAYS):
    return {prefix + name: value for name, value in arrays.items()}


def same(found, expected=ARRAYS):
    return found.keys() == expected.keys() and all(found[n] is expected[n] for n in expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ARRAYS, ""),
        (
            {"state_dict": ARRAYS, "meta": {"epoch": np.float64(3)}},
            "the weights are under state_dict",
        ),
        ({"model": ARRAYS, "optimizer": OPTIMIZER, "iteration": 9}, "the weights are under model"),
        (
            {"net": prefixed("module."), "acc": 91.2, "epoch": 7},
            "under net; removed from the names: mo",
        ),
        ({"model_state_dict": prefixed("_orig_mod."), "loss": np.ones(())}, "_orig_mod."),
        ({"state_dict": prefixed("model.")}, "removed from the names: model."),
        ({"state_dict": prefixed("model._orig_mod.module.")}, "names: _orig_mod., model., module."),
        ({"epoch": 1, "model": {"state_dict": ARRAYS}}, "the weights are under model/state_dict"),
        ({"checkpoint": {"model": ARRAYS}}, "under checkpoint/model"),
        ({"detector_weights": ARRAYS, "step": 3}, "under detector_weights"),
        ({"model_ema": OTHER, "model": ARRAYS}, "under model; left out: model_ema"),
        ({"state_dict": ARRAYS, "ema_state_dict": OTHER}, "left out: ema_state_dict"),
        ({"my_ema": OTHER, "mine": ARRAYS}, "under mine; left out: my_ema"),
        ({"model_ema": ARRAYS}, "under model_ema"),
        ({"net": OTHER, "model": ARRAYS}, "under model; left out: net"),
        ({"model": ARRAYS, "scaler": {"scale": np.ones(())}}, "the weights are under model"),
        (ARRAYS | {"ema_backbone_conv1_weight": np.ones(2)}, "out: ema_backbone_conv1_weight"),
        (
            prefixed("model.") | prefixed("ema_model.module.", OTHER),
            "names: model.; left out: ema_",
        ),
        (prefixed("model.") | {"criterion.weight": np.ones(5)}, "left out: criterion.weight"),
        (prefixed("module.") | {"n_averaged": np.array(5)}, "removed from the names: module."),
        (
            {"backbone._orig_mod.conv1.weight": ARRAYS["backbone.conv1.weight"]}
            | {"bbox_head.module.bias": ARRAYS["bbox_head.bias"]},
            "removed from the names: _orig_mod., module.",
        ),
    ],
)
def test_checkpoints_of_the_usual_programs(content, said):
    found = unwrap(content)
    assert same(found.arrays)
    assert said in found.found and bool(said) == bool(found.found)
    assert "\n" not in found.found


@given(
    st.lists(st.sampled_from(["state_dict", "model", "net", "model_state_dict"]), max_size=3),
    st.lists(st.sampled_from(["module.", "model.", "_orig_mod.", "net."]), max_size=3),
    st.booleans(),
)
def test_any_nesting_is_undone(keys, prefixes, beside):
    content = prefixed("".join(prefixes))
    for key in reversed(keys):
        content = {"epoch": 3, key: content}
        if beside:
            content |= {"optimizer": OPTIMIZER, "model_ema": prefixed("module.", OTHER)}
    found = unwrap(content)
    assert same(found.arrays)
    assert "/".join(keys) in found.found
    assert all(prefix in found.found for prefix in prefixes)
    assert ("left out: model_ema" in found.found) == (beside and bool(keys))


def cycle(arrays):
    """A dictionary that holds itself: PyTorch can read such a file."""
    content = dict(arrays)
    content["model"] = content
    return content


def test_a_dictionary_within_itself_ends():
    assert same(unwrap(cycle(ARRAYS)).arrays)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([np.ones(2)], "holds no arrays by name, but a list: it must be a state dict"),
        ({}, "but nothing: "),
        (
            {"epoch": 1, "lr": 2, "a": 3, "b": 4, "c": 5},
            "but the keys epoch, lr, a, b and 1 more: ",
        ),
        ({"optimizer": OPTIMIZER}, "but the keys optimizer: "),
        (
            {"generator": ARRAYS, "critic": OTHER},
            "several dictionaries of arrays, generator, critic: ",
        ),
        ({"module.a": np.ones(1), "a": np.ones(1)}, "two arrays of one name"),
        (cycle({}), "but the keys model"),
    ],
)
def test_other_contents_are_one_sentence(content, problem):
    with pytest.raises(ValueError, match=r"^holds ") as error:
        unwrap(content)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_libraries_are_reported(tmp_path, monkeypatch):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(UserError, match=f"{name}: there is no such file"):
            read_arrays(tmp_path / name)
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-torch\.txt"):
        read_arrays(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.safetensors needs .* pip install safetensors"):
        read_arrays(tmp_path / "none.safetensors")
