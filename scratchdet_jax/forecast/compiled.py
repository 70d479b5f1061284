"""Reads the text of a compiled program (HLO): operations, loops, collectives, and their costs."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_ITEMSIZE = {
    "token": 0,
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COLLECTIVE = re.compile(
    rf"= (?P<result>\([^=]*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_COMMENT = re.compile(r"/\*.*?\*/")
# Lists of devices, {} for all, an iota ([4,2]<=[8]: 4 groups of 2), or a mesh (JAX 0.12).
_GROUPS = re.compile(
    r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=[^,\s]+|mesh\[[^\]]*\] \{[^}]*\})"
)
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


class Collective(NamedTuple):
    """One collective operation of a compiled program; `bytes` is its result on one device."""

    kind: str
    bytes: int
    groups: str


class Operation(NamedTuple):
    """One operation of a compiled program, on one device.

    Attributes:
        name: of the operation.
        kind: its opcode, such as "fusion" or "custom-call"; for a custom call also its target.
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


class Loop(NamedTuple):
    """A loop of a compiled program.

    Attributes:
        name: of the operation.
        scope: where the program called it.
        trips: how often its body runs; None if the text does not say.
        cycles: the compiler's estimate of one round, inner loops included.
    """

    name: str
    scope: str
    trips: int | None
    cycles: int


class _Line(NamedTuple):
    """A line of a computation, with the computations that it runs."""

    operation: Operation
    trips: int | None
    runs: tuple[str, ...]


class HloModule:
    """The computations of a compiled HLO module."""

    def __init__(self, program: str) -> None:
        """`program` is the module's text."""
        self._computations: dict[str, list[_Line]] = {}
        self._entry = ""
        sizes: dict[str, int] = {}
        lines: list[_Line] = []
        for line in program.splitlines():
            if not line.startswith(" "):
                if start := _COMPUTATION.match(line):
                    lines, sizes = [], {}
                    self._computations[start["name"]] = lines
                    self._entry = start["name"] if start["entry"] else self._entry
            elif found := _OPERATION.match(_COMMENT.sub("", line)):
                sizes[found["name"]] = array_bytes(found["result"], main_memory=True)
                lines.append(_line(line, found, sizes))

    def operations(self) -> Iterator[Operation]:
        """The operations that run, those of loops and branches included.

        Of a conditional's branches, only the most expensive is given. An operation in a loop whose
        trip count is not known is given as if the loop ran once.
        """
        return self._run(self._entry, 1, "")

    def _run(self, computation: str, rounds: int, scope: str) -> Iterator[Operation]:
        for line in self._computations[computation]:
            operation = line.operation._replace(scope=line.operation.scope or scope, rounds=rounds)
            yield operation
            runs = line.runs
            if operation.kind == "conditional":
                runs = (max(runs, key=self.cycles),)
            for name in runs:
                yield from self._run(name, rounds * (line.trips or 1), operation.scope)

    def cycles(self, computation: str | None = None) -> int:
        """The estimated cycles of a computation; by default of the whole program."""
        found = self._run(computation or self._entry, 1, "")
        return sum(operation.rounds * (operation.cycles or 0) for operation in found)

    def loops(self) -> list[Loop]:
        """The loops that run."""
        running = {operation.name for operation in self.operations() if operation.kind == "while"}
        return [
            Loop(line.operation.name, line.operation.scope, line.trips, self.cycles(line.runs[0]))
            for lines in self._computations.values()
            for line in lines
            if line.operation.name in running
        ]


def _line(line: str, found: re.Match[str], sizes: dict[str, int]) -> _Line:
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
    if kind == "custom-call" and (target := re.search(r'custom_call_target="([^"]*)"', line)):
        kind = target[1]
    operation = Operation(
        found["name"], kind, scope[1] if scope else "", int(cycles[1]) if cycles else None, size, 1
    )
    return _Line(operation, int(trips[1]) if trips else None, tuple(runs))


def array_bytes(shapes: str, main_memory: bool = False) -> int:
    """Bytes of all arrays in an HLO shape such as `f32[2,64]{1,0}` or a tuple of them.

    With `main_memory`, arrays in a TPU's vector memory (`{1,0:S(1)}`) are left out.
    """
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * _ITEMSIZE[kind]
        for kind, sides, layout in _ARRAY.findall(shapes)
        if not (main_memory and "S(" in layout)
    )


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a compiled HLO module."""
    found = []
    for line in program.splitlines():
        line = _COMMENT.sub("", line)  # long tuples are numbered: /*index=5*/
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        size = array_bytes(match["result"])
        # The start of an asynchronous collective other than all-reduce returns (input, output).
        if match["start"] and match["kind"] != "all-reduce":
            raise ValueError(f"asynchronous {match['kind']}: input and output bytes are mixed")
        groups = _GROUPS.search(line)
        if "replica_groups=" in line and not groups:
            raise ValueError(f"replica groups in an unknown notation: {line.strip()[:300]}")
        found.append(Collective(match["kind"], size, groups[1] if groups else "{}"))
    return found


def device_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on each device by the compiler's plan: arguments, results, temporaries and total.

    Results that reuse the memory of arguments are not counted.
    """
    plan: Any = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def cost(compiled: jax.stages.Compiled, key: str) -> float | None:
    """A figure of one call on each device by XLA's count ("flops", "bytes accessed"), or None."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return analysis.get(key) if analysis else None
