"""The compiled step all-reduces the bytes that the model predicts."""

import pytest

from benchmarks.collectives import Collective, array_bytes, collectives, compile_step
from benchmarks.collectives import expected_traffic as expected
from tests.tiny import tiny_config

ALL, ALL_BY_MESH = "{{0,1,2,3,4,5,6,7}}", "mesh['batch'=8] {'batch'}"
PROGRAM = """
  %all-reduce.1 = f32[2,64]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %all-reduce.2 = (f32[3,3,8]{2,1,0}, f32[]{:T(128)}, /*index=2*/f32[5]{0}) all-reduce(%a, %b, %c), replica_groups=[1,4]<=[4], to_apply=%add
  %get = f32[5]{0} get-tuple-element(%all-reduce.2), index=2
  %start = bf16[7]{0} all-reduce-start(%a), replica_groups={}
  %done = bf16[7]{0} all-reduce-done(%start)
  %psum.7 = f32[1,3]{1,0} all-reduce(%a), replica_groups=mesh['batch'=8] {'batch'}, to_apply=%add
  %gather = s32[4]{0} all-gather(%a), dimensions={0}
"""  # noqa: E501


def test_each_collective_of_a_program_is_read_once():
    assert collectives(PROGRAM) == [
        Collective("all-reduce", 2 * 64 * 4, "{{0,1},{2,3}}"),
        Collective("all-reduce", (72 + 1 + 5) * 4, "[1,4]<=[4]"),
        Collective("all-reduce", 14, "{}"),
        Collective("all-reduce", 12, ALL_BY_MESH),
        Collective("all-gather", 16, "{}"),
    ]


def test_groups_in_an_unknown_notation_are_refused():
    with pytest.raises(ValueError, match="unknown notation"):
        collectives("%a = f32[2]{0} all-reduce(%b), replica_groups=<new>, to_apply=%add")


def test_bytes_of_scalars_and_tuples():
    assert array_bytes("f32[]") == 4
    assert array_bytes("(f64[2]{0}, pred[3]{0})") == 19


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
    assert {c.kind for c in found} == {"all-reduce"}
    assert sum(c.bytes for c in found) == expected(config, variables, 8).total
    assert {ALL if c.groups == ALL_BY_MESH else c.groups for c in found} == groups
