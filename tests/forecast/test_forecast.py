"""The forecast: a tiny network compiled for TPUs that are not here, and how it is reported."""

import json
import re

import flax.linen as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchdet_jax.forecast import chips, estimate
from scratchdet_jax.forecast.estimate import Forecast
from scratchdet_jax.models.backbone import Backbone
from scratchdet_jax.models.layers import Layers
from scratchdet_jax.models.ssd import BACKBONES
from scratchdet_jax.tools import forecast
from scratchdet_jax.tools.forecast import to_text
from tests.command import exit_status
from tests.tiny import tiny_config


class Least(nn.Module):
    """Two convolutions, of which the second gives the only source map."""

    layers: Layers

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(self.layers.dtype)
        for name in ("first", "second"):
            x = self.layers.convolve(x, 32, 3, stride=4, name=f"{name}_conv")
            x = self.layers.normalize(x, train, name=f"{name}_norm", relu=True)
        return (x,)


LEAST = Backbone(
    build=lambda config, layers: Least(layers),
    name=lambda config: "Least",
    sources=lambda config: 1,
    checks=lambda config: {},
)


@pytest.fixture
def config(monkeypatch):
    """A recipe of the least network, 4 images a chip on 4 chips."""
    monkeypatch.setitem(BACKBONES, "least", LEAST)
    config = tiny_config().unlock()
    config.model.backbone = "least"
    config.model.extra_strides = ()
    config.model.last_convolutions = False
    config.model.dtype = "bfloat16"
    config.anchors.update(min_percent=(20,), max_percent=(40,), aspect_ratios=((),), steps=())
    return config


@pytest.fixture
def tpus():
    """Devices of a TPU slice, by its name."""
    pytest.importorskip("libtpu", reason="the TPUs' compiler exists for Linux on x86-64 only")
    chips.prepare_environment()
    return chips.devices


def blocks(text):
    """The lines of every computation by name; the entry's name is ""."""
    found = re.finditer(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\n((?:  .*\n)*)\}", text, re.M)
    return {"" if match[1] else match[2]: match[3].splitlines() for match in found}


def plain_cycles(text, block=""):
    """The sum of the estimates of a block, of loop bodies once and of the dearest branch."""
    lines, total = blocks(text)[block], 0
    for line in lines:
        total += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
        for body in re.findall(r" while\(.* body=%([\w.\-]+)", line):
            total += plain_cycles(text, body)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            total += max(plain_cycles(text, b.strip(" %")) for b in branches.split(","))
    return total


@pytest.mark.parametrize(
    ("mode", "parallel"),
    [
        ("train", "shard_map"),
        pytest.param("train", "pmap", marks=pytest.mark.slow),
        ("eval", "shard_map"),
    ],
)
def test_a_forecast_for_a_tpu_adds_up_to_its_text(mode, parallel, config, tpus):
    config.parallel = parallel
    made, text = estimate.forecast(mode, config, 3, *tpus("v5e:2x2"))
    assert made.estimated
    assert made.seconds == pytest.approx(plain_cycles(text) / 1.5e9)
    assert sum(part.seconds for part in made.parts) == pytest.approx(made.seconds)
    assert sum(part.flop for part in made.parts) == made.flop
    assert sum(part.bytes for part in made.parts) == made.bytes
    share = made.images // made.chips
    assert (share, made.chips) == (4 if mode == "train" else 2, 4)
    # 32·32·9 multiply-adds for each of 4×4 cells in the second convolution.
    parts = {(part.name, part.backward): part for part in made.parts}
    assert parts["second", False].flop == 2 * share * 32 * 32 * 9 * 16
    reductions = len(re.findall(r" all-reduce(?:-start)?\(", text))
    assert made.collectives.get("all-reduce", (0, 0))[0] == reductions
    assert bool(reductions) == (mode == "train")
    assert 0 < made.memory["total"] < made.memory_available == 15.75 * 2**30
    expected = {"inputs", "first", "second", "head"}
    expected |= {"loss", "update"} if mode == "train" else {"detections"}
    assert expected <= {part.name for part in made.parts}
    assert ("second", True) in parts or mode == "eval"

    words = to_text(made)
    assert "of 15.75 GiB\n" in words and "estimate: images/s a chip" in words
    assert "a loop of unknown length counts as one round" in words
    assert json.loads(json.dumps(made.record()))["images"] == made.images


def test_a_forecast_for_a_gpu_adds_up(config):
    pytest.importorskip("jax_cuda12_plugin", reason="install requirements-cuda.txt")
    chip, devices = chips.devices("h100")
    made, text = estimate.forecast("train", config, 3, chip, devices)
    assert not made.estimated and made.images == 16
    slowest = [max(p.flop / chip.peak("bfloat16"), p.bytes / chip.bandwidth) for p in made.parts]
    assert made.seconds == pytest.approx(sum(slowest))
    assert "__cudnn$conv" in text
    assert "at least ms" in to_text(made)
    assert "estimated_cycles" not in text


def test_a_batch_that_does_not_fit_is_one_sentence(config, tpus):
    config.eval.batch_size = 4 * 2_000_000
    with pytest.raises(estimate.TooLarge, match=r"the batch does not fit: .*--largest_batch"):
        estimate.forecast("eval", config, 3, *tpus("v5e:2x2"))


@pytest.mark.slow  # 256 chips
def test_a_step_is_compiled_for_256_chips(config, tpus):
    config.batch_size, config.eval.batch_size = 1024, 256
    made, text = estimate.forecast("train", config, 3, *tpus("v5e:16x16"))
    assert (made.chips, made.images) == (256, 1024)
    assert made.collectives["all-reduce"][0] > 0
    assert made.seconds == pytest.approx(plain_cycles(text) / 1.5e9)


@given(limit=st.integers(0, 3000), start=st.integers(1, 600))
def test_the_largest_batch_is_found_to_within_an_eighth(limit, start):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= limit

    found = estimate.largest(fits, start)
    assert limit - max(1, limit // 8) < found <= limit or found == limit == 0
    assert len(tried) == len(set(tried))


def test_the_largest_batch_that_fits_is_forecast(config, monkeypatch, capsys):
    def fake(mode, config, classes, chip, devices):
        if config.batch_size > 4 * 21:
            raise estimate.TooLarge("no")
        memory = {"total": config.batch_size}
        return Forecast("", 4, config.batch_size, 0, memory, *[None] * 9), ""

    monkeypatch.setattr(estimate, "forecast", fake)
    made, _ = estimate.largest_forecast("train", config, 3, None, [None] * 4)
    assert made.images in (4 * 20, 4 * 21)
    assert "config.batch_size 128: does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name what to forecast: program train or eval"),
        (("train", "--config=configs/shapes.py"), "name what to compile for"),
        (("eval", "--config=configs/shapes.py", "--device=tpu9"), "--device=tpu9 is not known"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(chips, "prepare_environment", lambda: None)
    assert exit_status(forecast.main, *arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
