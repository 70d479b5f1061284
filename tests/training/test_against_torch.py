"""Training against PyTorch's, update by update: the same weights, the same augmented batches.

PyTorch's side is written from the descriptions: the authors' Root-ResNet-34 and their VGG-16 with
BatchNorm, the MultiBox loss with its mining, SGD with momentum and weight decay, the warm-up.

`forced`: before each update, PyTorch gets our parameters, statistics and momenta, so each update is
compared by itself. `free`: both train on their own. A detector at the beginning of its training
amplifies every difference, so the tolerance is the program's own sensitivity: our program is also
run with initial weights that differ by float32 rounding, and PyTorch may be no farther from it than
ten times that.
"""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.detector import build_detector
from scratchdet_jax.interop.torch_weights import convert
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import example_keys, make_train_step
from tests.tiny import random_batch

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests import release  # noqa: E402
from tests.caffe_release import VGG, Detector  # noqa: E402

CLASSES = ("a", "b", "c")
RATE, WARMUP, MOMENTUM, DECAY = 0.05, 100, 0.9, 5e-4


class GroupNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of groups of `span` images, as on several GPUs.

    The running statistics are the mean of the groups', which is what one GPU's would be on average.
    """

    span = 4

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        parts, means, variances = [], [], []
        for part in x.split(self.span):
            mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            parts.append(
                nn.functional.batch_norm(
                    part, mean, variance, self.weight, self.bias, True, 1.0, self.eps
                )
            )
            means.append(mean)
            variances.append(variance)
        for running, found in ((self.running_mean, means), (self.running_var, variances)):
            running.lerp_(torch.stack(found).mean(0), self.momentum)
        return torch.cat(parts)


def grouped(module):
    """Replaces every BatchNorm by one over groups."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = GroupNorm(child.num_features, child.eps, child.momentum)
            setattr(module, name, norm)
        else:
            grouped(child)
    return module


class ReleaseSide:
    """The authors' Root-ResNet-34 by its own names; `convert` gives ours."""

    def __init__(self, width):
        self.model = release.Release(300, len(CLASSES) + 1, base=int(64 * width))

    def outputs(self, images):
        logits, offsets = self.model(images)
        return logits, offsets[..., [1, 0, 3, 2]]  # (x, y, w, h) → (y, x, h, w)

    def begin(self, variables):
        """Initial weights: those of the PyTorch model, by the importer."""
        release.randomise(self.model, torch.zeros(2, 3, 64, 64), seed=0)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                module.momentum = 0.1
        return self.ours(variables, lambda array: array)

    def ours(self, variables, of):
        """`of` each array of the model in our tree; arrays without a value are kept."""
        state = {name: of(array) for name, array in self.model.state_dict(keep_vars=True).items()}
        arrays = {
            name: (array if value is None else value).detach().numpy().copy()
            for (name, array), value in zip(
                self.model.state_dict().items(), state.values(), strict=True
            )
        }
        return convert(arrays, variables).variables

    def assign(self, variables, of):
        """Copies our tree into `of` each array: the inverse of `ours`, by numbering."""
        state = self.model.state_dict(keep_vars=True)
        start, numbered = 0, {}
        for name, array in state.items():
            numbered[name] = np.arange(start, start + array.numel(), dtype=np.float64)
            numbered[name] = numbered[name].reshape(tuple(array.shape))
            start += array.numel()
        like = jax.tree.map(lambda x: np.zeros(np.shape(x), np.float64), variables)
        places = convert(numbered, like).variables
        flat = np.zeros(start)
        for place, value in zip(jax.tree.leaves(places), jax.tree.leaves(variables), strict=True):
            flat[np.asarray(place).astype(np.int64)] = np.asarray(value)
        for name, array in state.items():
            if not name.endswith("num_batches_tracked"):
                values = torch.from_numpy(flat[numbered[name].astype(np.int64)])
                of(array).copy_(values.to(array.dtype))


class VGGSide:
    """The authors' VGG-16 with BatchNorm, by our names."""

    def __init__(self, width):
        channels = [int(c * width) for c in (512, 1024, 512, 256, 256, 256)]
        anchors = (4, 6, 6, 6, 4, 4)
        trunk = VGG(int(64 * width), strides=(2, 2, 2, 2))
        self.model = Detector(trunk, channels, anchors, len(CLASSES) + 1, True)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.001

    def outputs(self, images):
        return self.model(images)

    def begin(self, variables):
        self.assign(variables, lambda array: array)
        return variables

    def arrays(self, variables):
        """(path, leaf, the array of the model, whether it is transposed)."""
        names = {
            "kernel": "weight",
            "scale": "weight",
            "mean": "running_mean",
            "var": "running_var",
        }
        for path, leaf in jax.tree.leaves_with_path(variables):
            keys = [entry.key for entry in path]
            owner = self.model.get_submodule(".".join(keys[1:-1]))
            yield keys, leaf, getattr(owner, names.get(keys[-1], keys[-1])), keys[-1] == "kernel"

    def ours(self, variables, of):
        found = {}
        for keys, _, array, transposed in self.arrays(variables):
            value = of(array)
            value = (array if value is None else value).detach()
            value = value.permute(2, 3, 1, 0) if transposed else value
            found[tuple(keys)] = value.numpy().copy()
        return traverse_util.unflatten_dict(found)

    def assign(self, variables, of):
        with torch.no_grad():
            for _, leaf, array, transposed in self.arrays(variables):
                value = torch.from_numpy(np.array(leaf))
                of(array).copy_(value.permute(3, 2, 0, 1) if transposed else value)


def multibox(logits, offsets, labels, targets):
    """Sums of the release's loss: three negatives a positive, the hardest of each image."""
    cross_entropy = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none"
    ).reshape(labels.shape)
    classification = localization = 0.0
    for image in range(len(labels)):
        positive = labels[image] > 0
        wanted = min(3 * int(positive.sum()), int((~positive).sum()))
        losses = cross_entropy[image]
        hardest = losses[~positive].topk(wanted).values
        classification = classification + losses[positive].sum() + hardest.sum()
        difference = nn.functional.smooth_l1_loss(
            offsets[image][positive], targets[image][positive], reduction="sum"
        )
        localization = localization + difference
    return classification, localization


def rate_of(step):
    """Linear warm-up from a third of the rate; no drop in these updates."""
    return RATE * (1 - (1 - min(step, WARMUP) / WARMUP) * 2 / 3)


def torch_update(side, optimizer, parts, step):
    """One update; the gradient is that of the sum over all parts, over all positives."""
    side.model.train()
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = rate_of(step)
    sums, positives = np.zeros(2), 0
    for images, labels, targets in parts:
        logits, offsets = side.outputs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        losses = multibox(
            logits, offsets, torch.from_numpy(labels).long(), torch.from_numpy(targets)
        )
        sum(losses).backward()
        sums += [float(loss.detach()) for loss in losses]
        positives += int((labels > 0).sum())
    square = 0.0
    for parameter in side.model.parameters():
        parameter.grad /= positives
        square += float(parameter.grad.double().square().sum())
    optimizer.step()
    return {
        "loss_classification": sums[0] / positives,
        "loss_localization": sums[1] / positives,
        "loss": sums.sum() / positives,
        "gradient_norm": math.sqrt(square),
        "learning_rate": rate_of(step),
    }


SIDES = {
    "release": ("configs/mmdet_release/ssd300.py", ReleaseSide),
    "vgg": ("configs/bn_ablation.py:both_0.05", VGGSide),
}


def make_config(recipe, width, size, accumulate, span):
    config = load_recipe(recipe)
    config.image_size = size
    config.anchors.steps = ()
    config.anchors.rounded = False
    config.model.width = width
    if config.model.backbone == "vgg16":  # the last two maps would be empty
        config.model.extra_strides = (2, 2, 2, 2)
    config.model.norm_span = span
    config.batch_size = 8
    config.accumulate_steps = accumulate
    config.num_steps = 10 * WARMUP
    config.train_images = 0
    config.data.canvas = (size, size)
    config.data.max_boxes = 4
    config.optimizer.learning_rate = RATE
    config.optimizer.reference_batch_size = 0
    config.optimizer.warmup_steps = WARMUP
    config.optimizer.drop_at = ()
    config.optimizer.no_decay = ""
    config.optimizer.bias_lr_mult = 1.0
    return config


def spread(tree, other):
    """Of each array, the L2 norm of the difference over that of the array, by name."""
    first, second = (traverse_util.flatten_dict(t, sep="/") for t in (tree, other))
    return {
        name: float(np.linalg.norm(first[name] - second[name]) / np.linalg.norm(second[name]))
        for name in first
        if np.linalg.norm(second[name]) > 0
    }


class Comparison:
    """Both programs, from the same initial weights."""

    def __init__(self, network, width, size, accumulate=1, span=0):
        recipe, side = SIDES[network]
        self.config = make_config(recipe, width, size, accumulate, span)
        self.detector = build_detector(self.config, CLASSES, AXIS)
        optimizer = make_optimizer(self.config)
        self.mapping = DeviceMapping("shard_map", jax.devices()[:1])
        self.step = self.mapping.map_train_step(make_train_step(self.detector, optimizer))
        fresh = create_state(self.detector.model, optimizer, size, seed=0)
        self.side = side(width)
        if span:
            GroupNorm.span = span
            grouped(self.side.model)
            if hasattr(self.side.model, "trunk"):  # the same modules by two names
                for name, module in self.side.model.trunk.named_children():
                    setattr(self.side.model, name, module)
        variables = self.side.begin(jax.device_get(fresh.variables))
        # On the host: a step reuses the buffers of its state.
        self.fresh = jax.device_get(fresh.starting_from(jax.tree.map(jnp.asarray, variables)))
        self.optimizer = torch.optim.SGD(
            self.side.model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY
        )
        self.inputs = jax.jit(self._inputs)

    def _inputs(self, batch, step):
        parts = []
        for i in range(self.config.accumulate_steps):
            part = jax.tree.map(lambda x: x[i], batch)  # noqa: B023
            count = len(part["labels"])
            keys = example_keys(self.config.seed, step, i * count + jnp.arange(count))
            parts.append(self.detector.inputs(part, keys))
        return parts

    def batch(self, step):
        batch = random_batch(self.config, 100 + step, parts=self.config.accumulate_steps)
        batch["boxes"][:, :, 0] = (0.1, 0.1, 0.6, 0.7)  # every image has an object
        batch["labels"][:, :, 0] = 1
        for unused in ("original_size", "id"):
            batch.pop(unused)
        return batch

    def ours(self, state, step):
        new, metrics = self.step(state, self.mapping.put_batch(self.batch(step)))
        return new, jax.device_get(metrics)

    def theirs(self, step):
        parts = [
            (np.array(images), np.array(targets.labels), np.array(targets.offsets))
            for images, targets in self.inputs(self.batch(step), step)
        ]
        return torch_update(self.side, self.optimizer, parts, step)

    def give(self, state):
        """Copies our parameters, statistics and momenta to PyTorch."""
        state = jax.device_get(state)
        with torch.no_grad():
            self.side.assign(state.variables, lambda array: array)
        momenta = next(
            part.trace
            for part in jax.tree.leaves(state.opt_state, is_leaf=is_trace)
            if is_trace(part)
        )
        buffers = {
            id(p): self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            for p in self.side.model.parameters()
        }
        with torch.no_grad():
            self.side.assign(
                {"params": momenta, "batch_stats": state.variables["batch_stats"]},
                lambda array: buffers.get(id(array), array),
            )

    def their_variables(self):
        return self.side.ours(self.fresh.variables, lambda array: None)


def is_trace(part):
    return hasattr(part, "trace")


CASES = {"plain": {}, "accumulated": {"accumulate": 2}, "groups": {"span": 4}}
METRICS = ("loss", "loss_classification", "loss_localization", "gradient_norm", "learning_rate")


def relative(found, expected):
    return {name: abs(float(found[name]) / expected[name] - 1) for name in METRICS}


def forced(network, case, updates, width, size):
    """The differences of each update by itself."""
    both = Comparison(network, width, size, **CASES[case])
    state, rows = both.mapping.replicate(both.fresh), []
    for step in range(updates):
        both.give(state)
        theirs = both.theirs(step)
        state, ours = both.ours(state, step)
        after = jax.device_get(state.variables)
        arrays = spread(after, both.their_variables())
        rows.append({"metrics": relative(ours, theirs), "arrays": arrays})
    return rows


def free(network, case, updates, width, size):
    """The differences while both train on their own, and of ours from ours perturbed."""
    both = Comparison(network, width, size, **CASES[case])
    rng = np.random.default_rng(0)
    state = both.mapping.replicate(both.fresh)
    near = both.fresh.replace(
        params=jax.tree.map(
            lambda x: x * (1 + rng.uniform(-6e-8, 6e-8, x.shape).astype(np.float32)),
            both.fresh.params,
        )
    )
    near, rows = both.mapping.replicate(near), []
    for step in range(updates):
        theirs = both.theirs(step)
        state, ours = both.ours(state, step)
        near, own = both.ours(near, step)
        rows.append(
            {"metrics": relative(ours, theirs), "sensitivity": relative(own, ours), "loss": ours}
        )
    final = jax.device_get(state.variables)
    return rows, {
        "arrays": spread(final, both.their_variables()),
        "sensitivity": spread(final, jax.device_get(near.variables)),
    }


def report(name, content):
    """Writes the figures where TRAINING_FIGURES points, for docs/results.md."""
    if folder := os.environ.get("TRAINING_FIGURES"):
        text = json.dumps(content, indent=1, default=float)
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            file.write(text)


def check_forced(rows):
    """Most updates agree to rounding; in a few, a ReLU or a maximum flips within rounding of a tie.

    A flip changes the gradient of every layer below it, and a statistic that sees few values most.
    So the median over all arrays is held tightly at each update, single arrays in most updates.
    """
    clean = 0
    for step, row in enumerate(rows):
        where, metrics, largest = f"update {step}", row["metrics"], max_item(row["arrays"])
        for name in METRICS[:3]:
            assert metrics[name] < 3e-5, (where, name, metrics)
        assert metrics["gradient_norm"] < 5e-3, (where, metrics)
        assert metrics["learning_rate"] < 1e-6
        assert np.median(list(row["arrays"].values())) < 1e-5, where
        assert largest[1] < 0.1, (where, largest)
        clean += largest[1] < 1e-3 and metrics["loss"] < 1e-6
    assert clean >= 0.6 * len(rows), clean


def max_item(values):
    return max(values.items(), key=lambda item: item[1])


def check_free(rows, final):
    for name in ("loss", "gradient_norm"):
        differences = np.array([row["metrics"][name] for row in rows])
        own = np.array([row["sensitivity"][name] for row in rows])
        # A single update may agree by chance: the largest up to the next update counts.
        largest = np.maximum.accumulate([*own[1:], own[-1]])
        allowed = 10 * np.maximum(largest, 1e-6)
        assert (differences < allowed).all(), (name, differences, own)
    medians = [np.median(list(final[key].values())) for key in ("arrays", "sensitivity")]
    assert medians[0] < 10 * max(medians[1], 1e-7), medians


def test_each_of_three_updates():
    check_forced(forced("release", "plain", 3, 0.125, 96))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("network", SIDES)
def test_each_of_twenty_updates(network, case):
    rows = forced(network, case, 20, 0.125, 96)
    report(f"forced-{network}-{case}", rows)
    check_forced(rows)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("network", SIDES)
def test_twenty_updates_in_a_row(network, case):
    rows, final = free(network, case, 20, 0.125, 96)
    report(f"free-{network}-{case}", {"rows": rows, **final})
    check_free(rows, final)


@pytest.mark.slow  # the published width: minutes
def test_twenty_updates_at_full_width():
    rows = forced("release", "plain", 20, 1.0, 128)
    report("forced-full", rows)
    check_forced(rows)
