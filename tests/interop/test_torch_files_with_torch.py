"""PyTorch's files are read, and nothing in them is executed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_files import read_arrays

torch = pytest.importorskip("torch")
nn = torch.nn

WEIGHTS = {"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3, 1, 1)}


def same_arrays(arrays, tensors=WEIGHTS):
    assert arrays.keys() == tensors.keys()
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].detach().float())


def test_wrapped_weights_are_found(tmp_path):
    model = nn.Sequential()
    model.add_module("backbone", nn.Sequential())
    model.backbone.add_module("conv1", nn.Conv2d(3, 2, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    wrapped = nn.DataParallel(model)
    content = {
        "model": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "ema": {"backbone.conv1.weight": torch.zeros(2, 3, 1, 1)},
    }
    torch.save(content, tmp_path / "x.pth")
    same_arrays(read_arrays(tmp_path / "x.pth").arrays, model.state_dict())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(kind, tmp_path):
    tensors = {name: nn.Parameter(tensor.to(kind)) for name, tensor in WEIGHTS.items()}
    torch.save(tensors, tmp_path / "x.pth")
    same_arrays(read_arrays(tmp_path / "x.pth").arrays)


@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_numpy_numbers_beside_the_weights_are_allowed(module, tmp_path):
    numbers = [kind(1) for kind in (np.float64, np.float32, np.float16, np.int64, np.uint8)]
    meta = {"epoch": 12, "mAP": np.float64(0.25), "all": [*numbers, np.bool_(True)]}
    path = tmp_path / "x.pth"
    torch.save({"meta": meta, "state_dict": WEIGHTS}, path, _use_new_zipfile_serialization=False)
    written, name = path.read_bytes(), b"cnumpy._core.multiarray\n"
    assert name in written
    path.write_bytes(written.replace(name, f"c{module}.multiarray\n".encode()))
    same_arrays(read_arrays(path).arrays)


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("object", r"not a checkpoint of plain tensors \(it contains \S*print\)"),
        ("array", r"it contains numpy\S+_reconstruct"),
        ("text", "not a checkpoint"),
        ("list", "holds no arrays by name, but list"),
        ("keys", r"holds no arrays by name, but \['epoch', 'lr'\]: it must be a state dict"),
        ("cut", "not a checkpoint"),
    ],
)
def test_other_files_are_refused(content, problem, tmp_path, capsys):
    path = tmp_path / "x.pth"
    if content == "object":
        torch.save({"state_dict": WEIGHTS, "meta": Hostile()}, path)
    elif content == "array":
        torch.save({"state_dict": WEIGHTS, "meta": np.array([Hostile()])}, path)
    elif content == "text":
        path.write_text("no checkpoint")
    elif content == "list":
        torch.save([torch.zeros(2)], path)
    elif content == "keys":
        torch.save({"epoch": 3, "lr": 0.1}, path)
    else:
        torch.save({"a": torch.zeros(99)}, path)
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=rf"x\.pth .*{problem}"):
        read_arrays(path)
    assert "executed" not in capsys.readouterr().out


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10**6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, damage, place, archive):
    path = tmp_path_factory.mktemp("files") / "x.pth"
    content = {"meta": {"epoch": np.float64(2)}, "state_dict": WEIGHTS}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    written = bytearray(path.read_bytes())
    place %= len(written)
    written[place : place + len(damage)] = damage
    path.write_bytes(written)
    try:
        arrays = read_arrays(path).arrays
    except UserError as error:
        assert "x.pth" in str(error) and "\n" not in str(error)
    else:
        assert all(array.dtype == np.float32 for array in arrays.values())


def test_safetensors_and_pytorch_files_read_alike(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    half = {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}
    half |= {"backbone.bn1.num_batches_tracked": torch.tensor(7)}
    safetensors.save_file(half, tmp_path / "x.safetensors")
    torch.save({"model": half}, tmp_path / "x.pth")
    same_arrays(read_arrays(tmp_path / "x.safetensors").arrays)
    same_arrays(read_arrays(tmp_path / "x.pth").arrays)
