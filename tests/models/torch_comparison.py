"""Compares a Flax module with a PyTorch module on copied weights. Needs PyTorch.

Import this module after `pytest.importorskip("torch")`.

Tolerance: an element may differ by 2e-4 of the largest of its array in single blocks, and by 2e-3
in a complete network, where 25 normalisations of few values amplify each other's rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

BLOCK_TOLERANCE, NETWORK_TOLERANCE = 2e-4, 2e-3


def to_nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def torch_tensors(module, variables, gradient=False):
    """Yields (path, Flax leaf, tensor of `module` in the layout of the leaf)."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for path, leaf in jax.tree.leaves_with_path(variables):
        keys = [entry.key for entry in path]
        owner = module.get_submodule(".".join(keys[1:-1]))
        tensor = getattr(owner, names.get(keys[-1], keys[-1]))
        tensor = tensor.grad if gradient else tensor.detach()
        yield keys, leaf, tensor.permute(2, 3, 1, 0) if keys[-1] == "kernel" else tensor


def randomised(variables, seed):
    """Values unlike the initial ones, so that scales, biases and running statistics matter."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:3]) / 2)
            case "scale" | "var":
                return rng.uniform(0.5, 1.5, leaf.shape)
            case _:
                return rng.normal(size=leaf.shape) * 0.3

    drawn = jax.tree_util.tree_map_with_path(draw, variables)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), drawn)


def assert_near(got, want, tolerance, what):
    want = want.detach().numpy() if isinstance(want, torch.Tensor) else want
    assert got.shape == want.shape, what
    largest = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * largest, err_msg=str(what))


def assert_same(flax_module, torch_module, shape, tolerance=BLOCK_TOLERANCE, seed=0):
    """Compares outputs in both modes, running statistics, gradients of input and parameters."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    shapes = jax.eval_shape(lambda x: flax_module.init(jax.random.key(0), x, train=False), x)
    variables = randomised(shapes, seed)
    for _, leaf, tensor in torch_tensors(torch_module, variables):
        tensor.copy_(torch.from_numpy(np.array(leaf)))

    def in_nhwc(outputs):
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [y.permute(0, 2, 3, 1) if y.ndim == 4 else y for y in outputs]

    torch_module.eval()
    with torch.no_grad():
        want_evaluation = in_nhwc(torch_module(to_nchw(x)))
    torch_module.train()
    torch_x = to_nchw(x).requires_grad_()
    want = in_nhwc(torch_module(torch_x))
    cotangents = [rng.normal(size=y.shape).astype(np.float32) for y in want]
    sum((y * torch.from_numpy(c)).sum() for y, c in zip(want, cotangents, strict=True)).backward()

    @jax.jit
    def run(variables, x):
        def loss(params, x):
            y, updates = flax_module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            y = y if isinstance(y, tuple) else (y,)
            return sum((a * c).sum() for a, c in zip(y, cotangents, strict=True)), (y, updates)

        (_, aux), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return *aux, *gradients, flax_module.apply(variables, x, train=False)

    got, updates, gradients, gradient_x, got_evaluation = run(variables, x)
    for a, b in zip(jax.tree.leaves(got_evaluation), want_evaluation, strict=True):
        assert_near(a, b, tolerance, "output in evaluation")
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, tolerance, "output in training")
    for keys, leaf, tensor in torch_tensors(torch_module, dict(updates)):
        assert_near(leaf, tensor, tolerance, keys)
    assert_near(gradient_x, torch_x.grad.permute(0, 2, 3, 1), tolerance, "gradient of the input")
    compared = 0
    for keys, leaf, tensor in torch_tensors(torch_module, {"params": gradients}, gradient=True):
        assert_near(leaf, tensor, tolerance, keys)
        compared += leaf.size
    assert compared == sum(p.numel() for p in torch_module.parameters())


def assert_same_network(flax_module, torch_module, shape, draws=3):
    """Compares a deep network on up to `draws` random inputs, one of which must agree in all.

    Rounding can decide on which side of 0 a ReLU's input lies, or which of two almost equal values
    is a maximum. The gradient then differs by a whole term, on one machine and not on another.
    """
    for seed in range(draws):
        torch_module.zero_grad()
        try:
            return assert_same(flax_module, torch_module, shape, NETWORK_TOLERANCE, seed)
        except AssertionError:
            if seed == draws - 1:
                raise
