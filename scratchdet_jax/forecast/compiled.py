"""Reads the text of a compiled program (HLO): operations, collectives, and their costs."""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COLLECTIVE = re.compile(
    r"= (?P<result>\([^=]*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?P<start>-start)?\("
)
_COMMENT = re.compile(r"/\*.*?\*/")  # long tuples are numbered: /*index=5*/
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_OPERATION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>\(.*?\)|\S+) (?P<kind>[\w\-]+)"
    r"\((?P<operands>[^)]*)\)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What an operation runs: the body of a loop, the branches of a conditional, a called computation.
_RUNS = re.compile(r"(?:body|true_computation|false_computation|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# Operations that only name what others compute.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
}


class Operation(NamedTuple):
    """One operation of a compiled program, on one device.

    Attributes:
        name: of the operation.
        kind: its opcode, such as "fusion" or "custom-call".
        scope: where the program called it, such as "jit(step)/jvp(SSD)/trunk/root/conv1/…"; a
            fused operation has the scope of its root, one without its own that of its loop, branch
            or call.
        cycles: the compiler's estimate; None where it gives none.
        bytes: of its operands and results in the main memory; what an asynchronous operation
            fetches counts at its end.
        rounds: how often it runs: the product of the known trip counts of the loops around it.
    """

    name: str
    kind: str
    scope: str
    cycles: int | None
    bytes: int
    rounds: int


class _Line(NamedTuple):
    """A line of a computation, with the computations that it runs."""

    operation: Operation
    trips: int | None
    runs: tuple[str, ...]


def operations(program: str) -> list[Operation]:
    """Returns the operations that run, loops and branches included, from the text of a module.

    Of a conditional's branches, only the most expensive is given. An operation in a loop whose trip
    count is not known is given as if the loop ran once.
    """
    computations: dict[str, list[_Line]] = {}
    entry = ""
    sizes: dict[str, int] = {}
    lines: list[_Line] = []
    for line in program.splitlines():
        if not line.startswith(" "):
            if start := _COMPUTATION.match(line):
                lines, sizes = [], {}
                computations[start["name"]] = lines
                entry = start["name"] if start["entry"] else entry
        elif found := _OPERATION.match(_COMMENT.sub("", line)):
            sizes[found["name"]] = array_bytes(found["result"], main_memory=True)
            lines.append(_line(line, found, sizes))
    return _run(computations, entry, 1, "")


def _run(
    computations: dict[str, list[_Line]], name: str, rounds: int, scope: str
) -> list[Operation]:
    """Returns the operations of a computation that runs `rounds` times in `scope`."""
    found = []
    for line in computations[name]:
        operation = line.operation._replace(scope=line.operation.scope or scope, rounds=rounds)
        trips = rounds * (line.trips or 1)
        inner = [_run(computations, run, trips, operation.scope) for run in line.runs]
        if operation.kind == "conditional":
            inner = [max(inner, key=cycles)]
        found += [operation, *itertools.chain(*inner)]
    return found


def cycles(operations: Iterable[Operation]) -> int:
    """Returns the sum of the compiler's estimates."""
    return sum(operation.rounds * (operation.cycles or 0) for operation in operations)


def _line(line: str, found: re.Match[str], sizes: dict[str, int]) -> _Line:
    """Reads a line of a computation; `sizes` are the bytes of the arrays before it."""
    kind, operands = found["kind"], re.findall(r"%([\w.\-]+)", found["operands"])
    cycles, scope, trips = _CYCLES.search(line), _SCOPE.search(line), _TRIPS.search(line)
    runs = _RUNS.findall(line) if kind in ("while", "conditional", "call") else []
    if branches := _BRANCHES.search(line):
        runs += re.findall(r"[\w.\-]+", branches[1])
    if kind in _FREE or kind.endswith("-start"):
        size = 0
    elif kind.endswith("-done"):
        size = array_bytes(found["result"])
    else:
        size = sizes[found["name"]] + sum(sizes.get(name, 0) for name in operands)
    operation = Operation(
        found["name"], kind, scope[1] if scope else "", int(cycles[1]) if cycles else None, size, 1
    )
    return _Line(operation, int(trips[1]) if trips else None, tuple(runs))


def array_bytes(shapes: str, main_memory: bool = False) -> int:
    """Returns the bytes of all arrays in an HLO shape such as `f32[2,64]{1,0}`, or a tuple of them.

    With `main_memory`, arrays in a TPU's vector memory (`{1,0:S(1)}`) are left out.
    """
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * _item_bytes(kind)
        for kind, sides, layout in _ARRAY.findall(shapes)
        if not (main_memory and "S(" in layout)
    )


def _item_bytes(kind: str) -> int:
    """Returns the bytes of one element of a type such as pred, s8, bf16 or f32; 0 of a token."""
    bits = re.search(r"\d+", kind)
    return int(bits[0]) // 8 if bits else int(kind == "pred")


def collectives(program: str) -> list[tuple[str, int]]:
    """Returns kind and bytes, of the result on one device, of each collective in an HLO module."""
    found = []
    for line in program.splitlines():
        match = _COLLECTIVE.search(_COMMENT.sub("", line))
        if match is None:
            continue
        # The start of an asynchronous collective other than all-reduce returns (input, output).
        if match["start"] and match["kind"] != "all-reduce":
            raise ValueError(f"asynchronous {match['kind']}: input and output bytes are mixed")
        found.append((match["kind"], array_bytes(match["result"])))
    return found


def device_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes of arguments, results, temporaries and total by the compiler's plan.

    They are for one device. Results that reuse the memory of arguments are not counted.
    """
    plan: Any = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}
