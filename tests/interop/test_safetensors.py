"""Safetensors files are read without PyTorch."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as array_strategies

from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_files import read_arrays

safetensors = pytest.importorskip("safetensors.numpy")

ARRAYS = array_strategies.arrays(
    st.sampled_from([np.float32, np.float16, np.float64, np.int32]),
    array_strategies.array_shapes(max_dims=4, max_side=3),
    elements=st.integers(-8, 8),
)


@given(st.dictionaries(st.sampled_from(["a.weight", "a.bias", "b.weight"]), ARRAYS, min_size=1))
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    safetensors.save_file({f"module.{n}": a for n, a in arrays.items()}, path)
    read = read_arrays(path).arrays
    assert read.keys() == arrays.keys()
    for name, array in read.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name])


def test_pytorch_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    safetensors.save_file({"a": np.ones(2)}, tmp_path / "x.safetensors")
    assert read_arrays(tmp_path / "x.safetensors").arrays["a"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"no safetensors file", b"\x08" + bytes(7) + b'{"a": 1}'])
def test_another_file_is_one_sentence(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors is not a checkpoint of plain tensors "):
        read_arrays(path)


def test_a_file_without_arrays_is_refused(tmp_path):
    safetensors.save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors holds no arrays by name, but \[\]"):
        read_arrays(tmp_path / "x.safetensors")
