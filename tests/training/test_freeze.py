"""Frozen parts: nothing of them changes, the rest trains as if they were constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.parts import frozen_mask, is_frozen, split_names
from scratchdet_jax.training.optimizer import make_optimizer
from tests.tiny import random_variables, tiny_config
from tests.training.small_run import assert_same_run, lines, small_config, train, train_in_parts

equal = np.testing.assert_array_equal


def test_names_cover_parts_and_whole_components_of_paths():
    assert split_names(" root, stage1/ ,,") == ("root", "stage1")
    assert split_names("") == ()
    assert is_frozen(("stage1", "block1", "conv1"), ["stage1"])
    assert is_frozen(("stage1", "block1", "conv1"), ["stage1/block1"])
    assert not is_frozen(("stage10", "block1"), ["stage1"])
    assert is_frozen(("stage10", "block1"), ["backbone"])
    assert is_frozen(("extra2", "conv1"), ["extras"])
    assert not is_frozen(("head", "level1"), ["backbone", "extras", "head/level2"])


@pytest.mark.slow  # compiles a ResNet's step
def test_a_frozen_norm_of_a_resnet_uses_its_running_statistics_and_other_norms_the_batch():
    """`root` is a module below the shared scope; compared with the model's two modes."""
    config = tiny_config(freeze="root,stage1,stage2,stage3,stage4,extras", init_from="x")
    detector = build_detector(config, ("a", "b"))
    variables = random_variables(detector.model, 64, np.random.default_rng(0))
    images = jnp.asarray(np.random.default_rng(1).normal(0, 50, (2, 64, 64, 3)), jnp.float32)
    sources = detector.model.apply(variables, images, train=False, method="sources")
    expected, _ = detector.model.apply(
        variables,
        sources,
        method=lambda model, maps: model.head(maps, True),
        mutable=["batch_stats"],
    )
    found, statistics = detector.forward(variables["params"], variables["batch_stats"], images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
    for name, tree in variables["batch_stats"].items():
        same = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (tree, statistics[name])), strict=True)
        ]
        assert not any(same) if name == "head" else all(same), name


def test_weight_decay_and_momentum_spare_frozen_arrays_alone():
    params = {"root": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    optimizer = make_optimizer(tiny_config(freeze="root"))
    plain = make_optimizer(tiny_config())
    gradients = {"root": {"w": jnp.zeros(2)}, "head": {"w": jnp.ones(2)}}
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    expected, _ = plain.update(gradients, plain.init(params), params)
    equal(updates["root"]["w"], 0.0)
    equal(updates["head"]["w"], expected["head"]["w"])
    assert np.any(expected["root"]["w"] != 0)
    assert sum(np.count_nonzero(x) == 0 for x in jax.tree.leaves(state) if np.ndim(x)) == 1


@pytest.mark.slow  # trains several runs
def test_a_run_trains_only_the_other_parts_and_resumes_exactly(tmp_path, monkeypatch):
    source = train(small_config(tmp_path, monkeypatch, num_steps=2), tmp_path / "source")
    fields = {
        "init_from": str(tmp_path / "source@2"),
        "freeze": "conv1,norm1,extras",
        "ema_decay": 0.9,
    }
    config = small_config(tmp_path, monkeypatch, **fields)
    whole = train(config, tmp_path / "whole")
    names = split_names(config.freeze)
    for new, old in (
        (whole.params, source.params),
        (whole.batch_stats, source.batch_stats),
        (whole.average["params"], source.params),
    ):
        mask = frozen_mask(new, names)
        same = jax.tree.map(np.array_equal, new, old)
        assert jax.tree.leaves(mask) == jax.tree.leaves(same)
        assert 0 < sum(jax.tree.leaves(mask)) < len(jax.tree.leaves(mask))
    (last,) = [line for line in lines(tmp_path / "whole", "train") if line["step"] == 4]
    assert last["gradient_norm_extras"] == 0 < last["gradient_norm_backbone"]
    parts = train_in_parts(config, tmp_path / "parts", monkeypatch, 3)
    assert_same_run((parts, tmp_path / "parts"), (whole, tmp_path / "whole"))

    random = small_config(tmp_path, monkeypatch, **fields | {"anchors.aspect_ratios": ((2,), ())})
    with random.unlocked():
        random.freeze = "head"
    with pytest.raises(
        UserError, match=r"freeze 'head': head/level1/\w+/\w+ and \d+ more would keep"
    ):
        train(random, tmp_path / "random")
