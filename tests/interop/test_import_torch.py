"""Imported PyTorch weights give PyTorch's outputs; arrays that do not fit are listed."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_weights import Imported, convert
from scratchdet_jax.ops import boxes
from scratchdet_jax.ops.anchors import AnchorSpecification, sizes_in_pixels
from scratchdet_jax.run.open import load_detector, open_run
from scratchdet_jax.training import loop
from scratchdet_jax.training.init_from import init_from_run

torch = pytest.importorskip("torch")
nn = torch.nn

from scratchdet_jax.tools import import_torch  # noqa: E402
from tests import release  # noqa: E402
from tests.tiny import random_variables, tiny_config  # noqa: E402

ROOT = Path(__file__).parents[2]


def recipe(name):
    return load_recipe(str(ROOT / "configs" / name))


def run_tool(monkeypatch, *arguments):
    """The tool's `main` on a command line."""
    monkeypatch.chdir(ROOT)
    import_torch.main([sys.argv[0], *arguments])


def outputs(workdir, images):
    """Logits and offsets of an imported run, and its config."""
    run = open_run(workdir)
    detector, variables = load_detector(run, run.info.config)
    apply = jax.jit(lambda v, x: detector.model.apply(v, x, train=False))
    return apply(variables, jnp.asarray(images)), detector, run


TOLERANCE = 1e-5  # of the range of the values


def difference(found, expected):
    """The largest difference over the range of the expected values."""
    return np.abs(np.asarray(found) - expected).max() / (expected.max() - expected.min())


def assert_near(found, expected):
    assert np.shape(found) == expected.shape
    assert difference(found, expected) < TOLERANCE


def compare(size, tmp_path, monkeypatch):
    images = np.random.default_rng(0).normal(0, 50, (2, size, size, 3)).astype(np.float32)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    model = release.randomise(release.Release(size), channels_first, seed=size)
    content = {"meta": {"epoch": 52}, "state_dict": model.state_dict()}
    torch.save(content, tmp_path / "released.pth")
    workdir = tmp_path / "run"
    run_tool(
        monkeypatch,
        f"--checkpoint={tmp_path / 'released.pth'}",
        f"--config=configs/mmdet_release/ssd{size}.py",
        f"--workdir={workdir}",
    )
    with torch.no_grad():
        logits, offsets = model(channels_first)
    (our_logits, our_offsets), detector, run = outputs(workdir, images)
    assert run.step == 0 and len(run.info.class_names) == 80
    assert np.std(logits.numpy()) > 0.1 and np.std(offsets.numpy()) > 0.1
    swapped = offsets.numpy()[..., [1, 0, 3, 2]]
    print(
        f"{size}: of their range, logits differ by {difference(our_logits, logits.numpy()):.1e}, "
        f"offsets by {difference(our_offsets, swapped):.1e}"
    )
    assert_near(our_logits, logits.numpy())
    assert_near(our_offsets, swapped)

    # The release's anchors and decoding give the same boxes.
    config = run.info.config
    spec = AnchorSpecification(image_size=size, **config.anchors.to_dict())
    maps = (64, 32, 16, 8, 4, 2, 1) if size == 512 else (38, 19, 10, 5, 3, 3)
    theirs = release.anchors_of(sizes_in_pixels(spec), maps, spec.steps, spec.aspect_ratios)
    expected = np.array(release.decode(np.clip(offsets[0].numpy(), -3, 3), theirs))
    ours = boxes.decode(jnp.clip(our_offsets[0], -3, 3), jnp.asarray(detector.anchors)) * size
    first, last = np.asarray(ours)[:, [1, 0]], np.asarray(ours)[:, [3, 2]] - 1
    np.testing.assert_allclose(np.concatenate([first, last], 1), expected, atol=0.02)


def test_scratchdet_300_of_the_release_is_exact(tmp_path, monkeypatch, capsys):
    compare(300, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    print(printed.splitlines()[-1])  # the differences
    assert "from backbone.layer8.0.bn2.running_var" in printed
    assert "mmdetection format: " in printed and " 0 at their initial values" in printed


@pytest.mark.slow  # a full-size network at 512 px
def test_scratchdet_512_of_the_release_is_exact(tmp_path, monkeypatch):
    compare(512, tmp_path, monkeypatch)


class TorchvisionResNet18(nn.Module):
    """torchvision's names; returns the last map of the trunk."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        ins = 64
        for i, outs in enumerate((64, 128, 256, 512), 1):
            blocks = release.Block(ins, outs, 1 if i == 1 else 2), release.Block(outs, outs, 1)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            ins = outs
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class TorchvisionVGG16(nn.Module):
    """torchvision's names; `forward` is SSD's truncated network with decimated fc6 and fc7."""

    plan = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")

    norm = False

    def __init__(self):
        super().__init__()
        layers, ins = [], 3
        for outs in self.plan:
            if outs == "M":
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            else:
                norm = [nn.BatchNorm2d(outs)] if self.norm else []
                layers += [nn.Conv2d(ins, outs, 3, padding=1), *norm, nn.ReLU()]
                ins = outs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 10),
        )

    def forward(self, x):
        x = nn.functional.max_pool2d(self.features[:-1](x), 3, 1, 1)
        fc6, fc7 = self.classifier[0], self.classifier[3]
        units = range(0, 4096, 4)
        windows = fc6.weight.reshape(4096, 512, 7, 7)[units][:, :, [0, 3, 6]][..., [0, 3, 6]]
        x = torch.relu(nn.functional.conv2d(x, windows, fc6.bias[units], padding=6, dilation=6))
        x = nn.functional.conv2d(x, fc7.weight[units][:, units, None, None], fc7.bias[units])
        return torch.relu(x)


class TorchvisionVGG16BN(TorchvisionVGG16):
    """With BatchNorm after the convolutions, which have biases; `forward` ends at conv4_3."""

    norm = True

    def forward(self, x):
        return self.features[:33](x)


RESNET18 = {"depth": 18, "stem": "conv7", "stem_stride": 2, "extra_strides": (2, 2, 2)}


@pytest.mark.parametrize(
    ("name", "fields", "model", "source"),
    [
        ("bn_ablation.py:pretrained", {}, TorchvisionVGG16, 1),
        ("bn_ablation.py:pretrained_bn", {}, TorchvisionVGG16BN, 0),
        pytest.param("voc300.py", RESNET18, TorchvisionResNet18, 2, marks=pytest.mark.slow),
    ],
)
def test_an_imported_backbone_equals_the_classifiers(name, fields, model, source, tmp_path, capsys):
    config = recipe(name)
    config.model.update(fields)
    config.image_size = 64
    config.anchors.steps = ()
    config.model.extra_strides = tuple(min(s + 1, 2) for s in config.model.extra_strides)
    config.init_from = ""
    torch.manual_seed(1)
    images = np.random.default_rng(0).normal(0, 1, (2, 64, 64, 3)).astype(np.float32)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    model = release.randomise(model(), channels_first, seed=1)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    imported = import_torch.import_run(state, config, tmp_path / "imagenet")
    assert {n.split("/")[0] for n in imported.initial if not n.startswith("extra")} <= {
        "head",
        "conv4_3_l2",
        "fc6_norm",
        "fc7_norm",
    }
    if name.endswith("_bn"):
        kernel = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
        fc6 = imported.variables["params"]["fc6"]["kernel"]
        np.testing.assert_array_equal(fc6, kernel.transpose(2, 3, 1, 0))
    with torch.no_grad():
        expected = model(channels_first)

    # A new run with other classes starts from the backbone; everything else is initialized.
    detector = build_detector(config, ("a", "b"))
    fresh = random_variables(detector.model, 64, np.random.default_rng(5))
    begun = init_from_run(str(tmp_path / "imagenet"), detector, fresh)
    sources = jax.jit(lambda v, x: detector.model.apply(v, x, train=False, method="sources"))
    found = sources(begun, images)[source]
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert_near(found, expected)
    for part in ("head", "extra1"):
        jax.tree.map(np.testing.assert_array_equal, begun["params"][part], fresh["params"][part])
    printed = capsys.readouterr().out
    assert "extra1" in printed and "not in the source" in printed
    with pytest.raises(UserError, match=r"holds imported weights.*init_from"):
        loop.train_and_evaluate(tiny_config(), tmp_path / "imagenet")


def small_state():
    """A checkpoint of the release with a few tiny arrays, and variables to match."""
    initial = {
        "params": {"root": {"conv1": {"kernel": np.zeros((3, 3, 3, 4))}}},
        "batch_stats": {"root": {"norm1": {"mean": np.zeros(4)}}},
    }
    state = {
        "backbone.conv1.weight": np.arange(108.0).reshape(4, 3, 3, 3),
        "backbone.bn1.running_mean": np.ones(4),
        "backbone.bn1.num_batches_tracked": np.array(7),
    }
    return state, initial


def test_names_and_layout():
    state, initial = small_state()
    kernel = convert(state, initial).variables["params"]["root"]["conv1"]["kernel"]
    weight = state["backbone.conv1.weight"]
    for i, j, a, b in np.ndindex(3, 3, 3, 4):
        assert kernel[i, j, a, b] == weight[b, a, i, j]


def test_arrays_that_do_not_fit_are_listed():
    state, initial = small_state()
    state["backbone.conv1.weight"] = np.zeros((4, 3, 7, 7))
    state["backbone.conv9.weight"] = np.zeros((1, 2))
    del state["backbone.bn1.running_mean"]
    with pytest.raises(UserError) as error:
        convert(state, initial)
    for words in (
        "in 3 arrays",
        "missing     backbone.bn1.running_mean (for root/norm1/mean (4,))",
        "shape       backbone.conv1.weight (4, 3, 7, 7) gives (7, 7, 3, 4), but root/conv1/kernel "
        "is (3, 3, 3, 4)",
        "unexpected  backbone.conv9.weight (1, 2)",
    ):
        assert words in str(error.value)


def test_other_networks_are_reported():
    with pytest.raises(UserError, match=r"neither .* begins with encoder\.weight"):
        convert({"encoder.weight": np.zeros(3)}, {"params": {}})


def test_a_head_of_unknown_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="predicts 6 classes"):
        head = {
            "bbox_head.reg_convs.0.0.weight": np.zeros((16, 1, 3, 3)),
            "bbox_head.cls_convs.0.0.weight": np.zeros((28, 1, 3, 3)),
        }
        import_torch.import_run(head, recipe("mmdet_release/ssd300.py"), tmp_path / "run")


def test_an_interrupted_import_can_be_repeated_and_a_complete_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(import_torch, "convert", lambda _, fresh: Imported(fresh, "x", (), ()))
    monkeypatch.setattr(import_torch, "number_of_classes", lambda _: 20)
    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(
            import_torch.Checkpoints, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            import_torch.import_run({}, config, tmp_path / "run")
    import_torch.import_run({}, config, tmp_path / "run")
    assert open_run(tmp_path / "run").step == 0
    with pytest.raises(UserError, match="already holds a run"):
        import_torch.import_run({}, config, tmp_path / "run")
