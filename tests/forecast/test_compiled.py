"""Reading compiled programs: collectives, and the costs of operations, loops and branches."""

from scratchdet_jax.forecast.compiled import array_bytes, collectives, cycles, operations

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
        ("all-reduce", 2 * 64 * 4),
        ("all-reduce", (72 + 1 + 5) * 4),
        ("all-reduce", 14),
        ("all-reduce", 12),
        ("all-gather", 16),
    ]


def test_bytes_of_scalars_and_tuples():
    assert array_bytes("f32[]") == 4
    assert array_bytes("(f64[2]{0}, pred[3]{0})") == 19


# A loop of 3 rounds with an inner loop of unknown length, and a conditional of two branches.
NESTED = """
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inside = f32[8]{0} negate(%p), backend_config={"estimated_cycles":"1000"}
}

%inner_body (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %f1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"5"}
}

%body (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  %f2 = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused, metadata={op_name="step/loss/neg"}, backend_config={"estimated_cycles":"7"}
  ROOT %inner = f32[8]{0} while(%f2), condition=%any, body=%inner_body
}

%cheap (c: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} parameter(0)
}

%dear (d: f32[8]) -> f32[8] {
  %d = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%d), backend_config={"estimated_cycles":"11"}
}

ENTRY %main (x: f32[8], y: pred[]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = pred[] parameter(1)
  %start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8]{0:S(1)} copy-done(%start)
  %two = (f32[8]{0}, /*index=1*/f32[8]{0:S(1)}) fusion(%x, %done), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %get = f32[8]{0} get-tuple-element(%two), index=0
  %loop = f32[8]{0} while(%get), condition=%any, body=%body, metadata={op_name="step/while"}, backend_config={"known_trip_count":{"n":"3"}}
  %cond = f32[8]{0} conditional(%y, %loop, %loop), branch_computations={%cheap, %dear}, metadata={op_name="step/update/cond"}
  ROOT %call = f32[8]{0} custom-call(%cond), custom_call_target="__cudnn$convForward"
}
"""  # noqa: E501


def test_cycles_follow_loops_and_the_dearer_branch_and_no_fused_operations():
    assert cycles(operations(NESTED)) == 100 + 3 * (7 + 5) + 11


def test_bytes_are_of_the_main_memory_and_a_fetch_counts_at_its_end():
    found = {o.name: o.rounds * o.bytes for o in operations(NESTED) if o.bytes}
    array = 8 * 4
    assert found == {
        "done": array,  # fetched from the main memory
        "two": 2 * array,  # one operand and one result are in the vector memory
        "f2": 3 * 2 * array,
        "f1": 3 * 2 * array,  # the inner loop counts as one round
        "copy.1": 2 * array,
        "call": 2 * array,
    }


def test_operations_without_a_scope_have_that_of_what_runs_them():
    found = {o.name: o.scope for o in operations(NESTED)}
    assert found["copy.1"] == "step/update/cond"
    assert found["f1"] == "step/while" and found["f2"] == "step/loss/neg"
