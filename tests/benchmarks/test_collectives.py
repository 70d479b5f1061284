"""The compiled step all-reduces the bytes that the model predicts."""

import re

import pytest

from benchmarks.collectives import compile_step
from benchmarks.collectives import expected_traffic as expected
from scratchdet_jax.forecast.compiled import collectives
from tests.tiny import tiny_config

ALL, ALL_BY_MESH = "{{0,1,2,3,4,5,6,7}}", "mesh['batch'=8] {'batch'}"


@pytest.mark.slow  # five compilations for eight devices
@pytest.mark.parametrize(
    ("overrides", "groups"),
    [
        ({}, {ALL}),
        ({"accumulate_steps": 2}, {ALL}),
        ({"model.norm_span": 4}, {ALL, "{{0,1},{2,3},{4,5},{6,7}}"}),
        ({"model.norm_span": 1}, {ALL}),
        ({"model.norm": "none", "model.head_norm": "none"}, {ALL}),
    ],
)
def test_the_compiled_step_reduces_what_the_model_predicts(overrides, groups):
    config = tiny_config(**overrides)
    program, variables = compile_step(config, 8)
    found = collectives(program)
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert sum(size for _, size in found) == expected(config, variables, 8).total
    named = set(re.findall(r"replica_groups=(\{\{.*?\}\}|mesh\[[^\]]*\] \{[^}]*\})", program))
    assert {ALL if group == ALL_BY_MESH else group for group in named} == groups
