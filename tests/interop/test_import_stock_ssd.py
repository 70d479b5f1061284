"""Imported SSDs of other programs give their logits, offsets, boxes and classes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_files import read_arrays
from scratchdet_jax.interop.torch_weights import check_version, convert, number_of_classes
from scratchdet_jax.ops import boxes
from scratchdet_jax.run.open import load_detector, open_run
from scratchdet_jax.tools.import_torch import import_run

torch = pytest.importorskip("torch")

from tests import release, stock_ssd  # noqa: E402
from tests.tiny import random_variables  # noqa: E402

ROOT = Path(__file__).parents[2]
# COCO's ids that no class has, of 0 … 90; 0 is the background.
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
TOLERANCE = 1e-5  # of the range of the values


def near(found, expected):
    spread = expected.max() - expected.min()
    assert spread > 0.1
    difference = np.abs(found - expected).max() / spread
    print(f"{difference:.1e} of the range")
    assert difference < TOLERANCE


def in_our_order(logits, program):
    """Logits of our classes, background first, from the program's."""
    if program.startswith("mmdetection"):
        return np.concatenate([logits[..., -1:], logits[..., :-1]], -1)
    if program == "torchvision":
        return logits[..., [i for i in range(91) if i not in UNUSED_IDS]]
    return logits


def compare(program, row, tmp_path, width=8):
    config = load_recipe(f"{ROOT}/configs/stock_ssd.py:{row}")
    config.model.width = 1 / width
    size, name = config.image_size, f"{'voc' if 'pytorch' in row else 'coco'}{config.image_size}"
    outputs = {"ssd_pytorch": 21, "torchvision": 91}.get(program, 81)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, size, size, 3)).astype(np.float32)
    images = torch.from_numpy(normalised(pixels, program).transpose(0, 3, 1, 2).copy())
    model = release.randomise(stock_ssd.SSD(program, outputs, size, width), images / 50, seed=3)
    for module in model.modules():
        if isinstance(module, stock_ssd.L2Norm):
            module.weight.data.uniform_(5, 30)
    if program == "torchvision":
        model.backbone.scale_weight.data.uniform_(5, 30)
    torch.save({"meta": {"epoch": np.int64(1)}, "state_dict": model.state_dict()}, tmp_path / "x")
    import_run(read_arrays(tmp_path / "x").arrays, config, tmp_path / "run")

    run = open_run(tmp_path / "run")
    detector, variables = load_detector(run, run.info.config)
    assert len(run.info.class_names) == (20 if program == "ssd_pytorch" else 80)
    apply = jax.jit(lambda x: detector.model.apply(variables, x, train=False))
    our_logits, our_offsets = apply(detector.normalize(pixels))
    with torch.no_grad():
        logits, offsets = (value.numpy() for value in model(images))
    near(np.asarray(our_logits), in_our_order(logits, program))
    near(np.asarray(our_offsets), offsets[..., [1, 0, 3, 2]])

    anchors = stock_ssd.anchors_of(name, clipped=not program.startswith("mmdetection"))
    small = offsets[0] / np.abs(offsets).max()
    expected = np.array(stock_ssd.decode(small, anchors))[:, [1, 0, 3, 2]]
    ours = boxes.decode(jnp.asarray(small[:, [1, 0, 3, 2]]), jnp.asarray(detector.anchors))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def normalised(pixels, program):
    """The program's input, from RGB pixels in 0…255."""
    if program == "ssd_pytorch":  # subtracts the mean from BGR, then turns to RGB
        return (pixels[..., ::-1] - np.float32([104, 117, 123]))[..., ::-1]
    if program == "torchvision":
        mean = np.float32([0.48235, 0.45882, 0.40784])
        return (pixels / np.float32(255) - mean) / np.float32(1 / 255)
    return pixels - np.float32([123.675, 116.28, 103.53])


@pytest.mark.parametrize(
    ("program", "row"),
    [
        ("ssd_pytorch", "ssd_pytorch"),
        ("torchvision", "torchvision"),
        ("mmdetection", "mmdetection300"),
        ("mmdetection_before_2_14", "mmdetection300"),
        pytest.param("mmdetection", "mmdetection512", marks=pytest.mark.slow),
    ],
)
def test_an_imported_ssd_equals_the_programs(program, row, tmp_path):
    compare(program, row, tmp_path)


@pytest.mark.slow  # a network of full width
def test_an_imported_ssd_of_full_width_equals_torchvisions(tmp_path):
    compare("torchvision", "torchvision", tmp_path, width=1)


def test_the_network_has_as_many_parameters_as_torchvision_states():
    model = stock_ssd.SSD("torchvision", 91)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_641_826


def plain_head_state():
    """The release with mmdetection's head of its time, without BatchNorm."""
    model = release.Release(300)
    for part in ("cls_convs", "reg_convs"):
        convolutions = [sequence[0] for sequence in getattr(model.bbox_head, part)]
        plain = [torch.nn.Conv2d(c.in_channels, c.out_channels, 3) for c in convolutions]
        setattr(model.bbox_head, part, torch.nn.ModuleList(plain))
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_the_release_with_a_plain_head_is_read():
    state = plain_head_state()
    config = load_recipe(f"{ROOT}/configs/mmdet_release/ssd300.py")
    config.model.head_norm = "none"
    assert number_of_classes(state) == 80
    detector = build_detector(config, ("any",) * 80)
    imported = convert(state, random_variables(detector.model, 300, np.random.default_rng(0)))
    assert imported.initial == [] and imported.source == "mmdetection"
    kernel = imported.variables["params"]["head"]["level2"]["class_conv"]["kernel"]
    weight = state["bbox_head.cls_convs.1.weight"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 1, 0))


def test_an_ssd_of_mmdetection_1_is_refused():
    state = {"backbone.l2_norm.weight": np.ones(512)}
    for version in ("2.0.0", "3.3.0", ""):
        check_version(state, version)
    with pytest.raises(UserError, match=r"mmdetection 1\.0rc1, whose order of classes"):
        check_version(state, "1.0rc1")


@pytest.mark.parametrize("version", ["2.13.0", ""])
def test_the_version_is_read(version, tmp_path):
    meta = {"mmdet_version": version} if version else {"epoch": 3}
    torch.save({"meta": meta, "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pth")
    assert read_arrays(tmp_path / "x.pth").mmdetection == version
