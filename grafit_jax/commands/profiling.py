"""Where the time of a compiled step goes: one call is traced, and its operations are added up."""

import collections
import copy
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections

from grafit_jax import experiment, restore, train_step
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.report.tables import plain_table
from grafit_jax.runs import workdir

# What an instruction, or the fusion around it, is called after: the first of these that it contains.
_KINDS = {
    "convolution": ("convolution", "__cudnn$conv"),
    "matrix product": ("dot", "__cublas", "__onednn$matmul", "__triton_gemm"),
    "sort": ("sort", "topk", "TopK"),
    "collective": ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"),
    "scatter": ("scatter",),
    "gather": ("gather", "dynamic-slice", "dynamic-update-slice"),
    "reduction": ("reduce", "reduce-window", "select-and-scatter"),
    "copy": ("copy", "transpose", "concatenate"),
}
_ELEMENTWISE = "elementwise"
# These hold others, which are listed themselves.
_CONTAINERS = frozenset({"while", "call", "conditional"})

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one kind of instruction at one place of our code took.

    Attributes:
      kind: convolution, matrix product, …, elementwise.
      name: the path of Flax modules and functions that JAX noted down, with the primitive at its end.
      count: how often it ran, over all devices of this host.
      milliseconds: from start to end, added up. Operations that overlap count each for itself.
    """

    kind: str
    name: str
    count: int
    milliseconds: float


def show_kernels() -> None:
    """For GPUs, before JAX uses one: kernels run one by one, since of a CUDA graph a trace sees only the whole."""
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="


def profile_step(
    config: ml_collections.ConfigDict, path: pathlib.Path, records: dict[str, Records] | None = None
) -> tuple[list[Operation], pathlib.Path]:
    """Traces one step of a run that starts, and trains nothing.

    Returns:
      its operations, the longest first, and the trace file, under `path`/profile.

    Raises:
      UserError: a config or data set that cannot work.
    """
    config = copy.deepcopy(config)
    config.train.steps_per_call = 1
    run = restore.load(config, path, records=records)
    feed = experiment.make_feed(run)
    state, memory = restore.initial(run)
    inputs = next(iter(feed.epoch(0)))
    step = train_step.pmap_steps(run, feed).lower(state, memory, inputs).compile()
    state, memory, _ = jax.block_until_ready(step(state, memory, inputs))  # the first call warms up
    traced = trace(lambda: step(state, memory, inputs), path / workdir.PROFILE)
    return operations(traced, step.as_text()), traced


def trace(call: Callable[[], Any], directory: pathlib.Path) -> pathlib.Path:
    """Traces one `call()` until its result is there; returns the trace file (for XProf or TensorBoard)."""
    with jax.profiler.trace(str(directory)):
        jax.block_until_ready(call())
    return max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def operations(path: pathlib.Path, hlo: str) -> list[Operation]:
    """The operations of a trace, the longest first.

    Args:
      path: a trace file of `trace`.
      hlo: the traced program, `compiled.as_text()`.

    Raises:
      UserError: none of the program's operations is in the trace.
    """
    program = _parse(hlo)
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    milliseconds: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
    for instruction, nanoseconds in _events(path):
        if instruction in program:
            count[program[instruction]] += 1
            milliseconds[program[instruction]] += nanoseconds / 1e6
    if not milliseconds:
        raise UserError(f"{path} holds no operation of the traced program: JAX's profiler does not trace this device.")
    found = [Operation(*key, count[key], ms) for key, ms in milliseconds.items()]
    return sorted(found, key=lambda o: -o.milliseconds)


def share(found: Iterable[Operation], kind: str) -> float:
    """The part of the operations' time that is of this kind, 0 to 1."""
    found = list(found)
    return sum(o.milliseconds for o in found if o.kind == kind) / sum(o.milliseconds for o in found)


def table(found: list[Operation], top: int = 20) -> str:
    """The shares of the kinds, and the `top` operations, as text."""
    total = sum(o.milliseconds for o in found)
    kinds = sorted({o.kind for o in found}, key=lambda kind: -share(found, kind))
    by_kind = [
        [kind, f"{total * share(found, kind):.1f}", f"{share(found, kind):.1%}", sum(o.kind == kind for o in found)]
        for kind in kinds
    ]
    by_operation = [
        [o.kind, f"{o.milliseconds:.1f}", f"{o.milliseconds / total:.1%}", o.count, o.name] for o in found[:top]
    ]
    return (
        plain_table(["kind", "ms", "share", "operations"], by_kind)
        + "\n\n"
        + plain_table(["kind", "ms", "share", "runs", "operation"], by_operation)
    )


def _events(path: pathlib.Path) -> Iterable[tuple[str, float]]:
    """(instruction, nanoseconds) of everything that ran.

    On CPU an event ends when its work is handed to the threads; when that is done, an event "end: …" names it by its
    producer's number.
    """
    ended, begun = {}, []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if event.name.startswith("end: "):
                    ended[stats.get("_c")] = event.start_ns
                else:  # TPUs give an event the whole instruction as its name
                    name = str(stats.get("hlo_op") or event.name.split(" = ")[0].lstrip("%"))
                    begun.append((name, stats.get("_p"), event.start_ns, event.duration_ns))
    for name, producer, start, duration in begun:
        yield name, max(duration, ended.get(producer, start) - start)


def _parse(hlo: str) -> dict[str, tuple[str, str]]:
    """instruction -> (kind, name) of a program's text."""
    contents: dict[str, set[str]] = {}  # computation -> its opcodes and the targets of its custom calls
    first_names: dict[str, str] = {}
    instructions = []
    computation, inside = "", set[str]()
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            computation, inside = start[1], contents.setdefault(start[1], set())
        elif found := _INSTRUCTION.match(line):
            instruction, _, opcode, rest = found.groups()
            target = re.search(r'custom_call_target="([^"]+)"', rest)
            inside.add(target[1] if target else opcode)
            instructions.append((instruction, target[1] if target else opcode, rest))
            if name := _name(rest):
                first_names.setdefault(computation, name)
    program = {}
    for instruction, opcode, rest in instructions:
        if opcode in _CONTAINERS:
            continue
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        inner = called[1] if called else ""
        name = _name(rest) or first_names.get(inner, instruction)
        program[instruction] = (_kind({opcode} | contents.get(inner, set())), name)
    return program


def _kind(opcodes: set[str]) -> str:
    for kind, starts in _KINDS.items():
        if any(opcode == s or (s.startswith("__") and opcode.startswith(s)) for opcode in opcodes for s in starts):
            return kind
    return _ELEMENTWISE


def _name(rest: str) -> str:
    """`op_name` without the wrappers that every operation of a step has."""
    found = re.search(r'op_name="([^"]*)"', rest)
    path = found[1].split("/") if found else []
    return "/".join(part for part in path if not re.fullmatch(r"jit\(\w+\)|pmap\(\w+\)|closed_call|body", part))
