"""Where the time of a step goes: JAX's profiler on a workload's own program, by operators of the ONNX graph.

``python -m hpdlf.experiments.benchmark_profile FOLDER`` runs a few steps of the workload in FOLDER under the profiler and writes
profile.json there. Every operator is computed under a name of its own, which XLA carries into the instructions that it compiles
and prints (``--xla_dump_to``); the profiler gives the seconds of each instruction. A fusion counts for the operator of its root; what
XLA made up itself and gave no name (half of a sum that it computes in two steps, say) counts for what it holds or who reads it.

An instruction counts once, however many threads share in it, and what it calls counts instead of it. Instructions may run side by
side, so they can cover more than a step; what they do not cover is Python, copies of data, and waiting.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .benchmark_baselines import Job
from .benchmark_workloads import CONFIGURATION, Workload

if TYPE_CHECKING:
    from ..models.onnxpp import Graph

__all__ = ["Instruction", "Share", "attribute", "instructions_of", "main", "profile"]

WARM_STEPS, STEPS = 2, 3
SHOWN = 15
CALLERS = ("while", "conditional")

_Key = TypeVar("_Key")
MARK = "onnx:"
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\([^=]*?\)|\S+) (?P<opcode>[\w-]+)\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_OPERAND = re.compile(r"%([\w.-]+)")
_OP_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')
_LAYOUT = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A compiled instruction: what it does, the shape of its result, and the path of names that it was traced under."""

    opcode: str
    shape: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one operator costs in one direction.

    operator    its name in the graph, or the instruction's kind and shape where no operator is known
    op_type     of ONNX; "" where no operator is known
    direction   "forward" or "backward"; "" likewise
    seconds     of a step
    share       of all instructions
    """

    operator: str
    op_type: str
    direction: str
    seconds: float
    share: float


def instructions_of(text: str) -> dict[str, Instruction]:
    """The instructions of a module as XLA prints it, by name; those inside fusions included.

    >>> line = '  %dot.3 = f32[8,4]{1,0} dot(%a, %b), metadata={op_name="jit(f)/jvp(onnx:dense1)/dot_general"}'
    >>> instructions_of(line)["dot.3"]
    Instruction(opcode='dot', shape='f32[8,4]', path='jit(f)/jvp(onnx:dense1)/dot_general')
    """
    found: dict[str, Instruction] = {}
    held: dict[str, list[str]] = defaultdict(list)  # instructions of a computation
    calls: dict[str, list[str]] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened["name"]
        elif head := _INSTRUCTION.match(line):
            name, path = head["name"], _OP_NAME.search(line)
            found[name] = Instruction(
                opcode=head["opcode"], shape=_LAYOUT.sub("", head["shape"]), path=path["name"] if path else ""
            )
            held[computation].append(name)
            calls[name] = _CALLS.findall(head["rest"])
            for operand in _OPERAND.findall(head["rest"].split("), ")[0]):
                readers[operand].append(name)
    for name, instruction in list(found.items()):
        if MARK not in instruction.path:
            inside = [found[i].path for c in calls[name] for i in held[c] if MARK in found[i].path]
            after = [found[r].path for r in readers[name] if MARK in found[r].path]
            if inside or after:
                found[name] = replace(instruction, path=Counter(inside or after).most_common(1)[0][0])
    return found


def attribute(
    seconds: Mapping[str, float], instructions: Mapping[str, Instruction], op_types: Mapping[str, str]
) -> list[Share]:
    """Shares of operators, the largest first.

    seconds      of a step by the name of an instruction
    op_types     of the graph's operators by name
    """
    longest = sorted(op_types, key=len, reverse=True)
    known: dict[str, tuple[str, str, str]] = {}
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for name, spent in seconds.items():
        instruction = instructions.get(name)
        if instruction is None:
            sums[name.split(".")[0], "", ""] += spent
            continue
        if instruction.opcode in CALLERS:
            continue
        if instruction.path not in known:
            known[instruction.path] = _operator(instruction.path, longest, op_types)
        key = known[instruction.path]
        sums[key if key[0] else (f"{instruction.opcode} {instruction.shape}", "", "")] += spent
    total = sum(sums.values()) or 1.0
    return [
        Share(operator=operator, op_type=op_type, direction=direction, seconds=spent, share=spent / total)
        for (operator, op_type, direction), spent in _largest_first(sums)
    ]


def _largest_first(sums: Mapping[_Key, float]) -> list[tuple[_Key, float]]:
    return sorted(sums.items(), key=lambda item: -item[1])


def _operator(path: str, longest: Sequence[str], op_types: Mapping[str, str]) -> tuple[str, str, str]:
    """(operator, its type, direction) of a path of names, the innermost that is known; '' thrice where it names none.

    >>> _operator("jit(f)/transpose(jvp(onnx:out))/onnx:soft/exp", ("soft", "out"), {"soft": "Softmax", "out": "MatMul"})
    ('soft', 'Softmax', 'backward')
    """
    if MARK not in path:
        return ("update", "optimizer", "") if "jit(update)" in path else ("", "", "")
    before, *parts = path.split(MARK)
    direction = "backward" if "transpose(" in before else "forward"
    names = (next((n for n in longest if part.startswith(n)), "") for part in reversed(parts))
    name = next((n for n in names if n), "")
    return (name, op_types[name], direction) if name else ("", "", "")


# --- in a process of its own --------------------------------------------------------------------------------------------------


def profile(workload: Workload, folder: Path) -> dict[str, Any]:
    """Profile the prepared workload in `folder`: plain values for the benchmark's result.

    Raises:
        RunError: the profiled process failed.
    """
    from ..exec.launcher import launch

    with tempfile.TemporaryDirectory(prefix="hpdlf-hlo-") as dumped:
        launch(
            [sys.executable, "-m", "hpdlf.experiments.benchmark_profile", str(folder), "--dumped", dumped],
            1,
            run_folder=folder / "profiled",
            max_restarts=0,
            environment={
                "XLA_FLAGS": f"--xla_dump_to={dumped} --xla_dump_hlo_as_text",
                "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is not compiled is not printed
            },
            threads=workload.cores,
            silence_s=1800.0,
        )
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return {"workload": workload.name, "kind": workload.kind, "threads": workload.cores, **found}


def _steps(folder: Path, job: Job) -> tuple[Graph, Iterator[None]]:
    """The graph, and its steps (or predictions), one at each turn."""
    import jax

    from ..exec.notebook import compile_model
    from ..models.onnxpp import load_onnxpp
    from ..models.onnxpp.hints import with_lowering

    trains = (folder / "model.onnx").is_file()
    model: Any = folder / "network.onnx"
    if trains:
        model = with_lowering(load_onnxpp(folder / "model.onnx"), CONFIGURATION)
    net = compile_model(model, optimizer=job.optimizer if trains else None)
    data = np.load(folder / "data.npz")
    held = {name: data[name] for name in (*job.inputs, *(job.targets if trains else ()))}

    def run() -> Iterator[None]:
        for chosen in np.load(folder / "batches.npy"):
            arrays = {name: array[chosen] for name, array in held.items()}
            yield jax.block_until_ready(net.step(arrays)) if trains else net.predict(arrays)

    return net.model.graph, run()


def _events(file: Path) -> Iterable[tuple[str, float]]:
    """(instruction, seconds) of everything that the profiler saw on a thread."""
    from jax.profiler import ProfileData

    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                names = dict(event.stats)
                if "hlo_op" in names:
                    yield str(names["hlo_op"]), event.duration_ns * 1e-9


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the profiled process."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_profile", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dumped", type=Path, required=True)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    from ..exec.affinity import bind_rank

    bind_rank()
    import jax

    graph, steps = _steps(folder, Job.read(folder))
    for _ in range(WARM_STEPS):
        next(steps)
    with tempfile.TemporaryDirectory(prefix="hpdlf-trace-") as traced:
        began = time.perf_counter()
        with jax.profiler.trace(traced):
            took = [next(steps) for _ in range(STEPS)]
            step_s = (time.perf_counter() - began) / len(took)
        (file,) = Path(traced).rglob("*.xplane.pb")
        seconds: dict[str, float] = defaultdict(float)
        for name, spent in _events(file):
            seconds[name] += spent / STEPS
    instructions: dict[str, Instruction] = {}
    for printed in sorted(options.dumped.glob("*after_optimizations.txt"), key=lambda p: p.stat().st_size):
        instructions |= instructions_of(printed.read_text())
    shares = attribute(seconds, instructions, {o.name: o.op_type for o in graph.operators})
    by_type: dict[tuple[str, str], float] = defaultdict(float)
    for share in shares:
        by_type[share.op_type or share.operator.split(" ")[0], share.direction] += share.share
    found = {
        "step_s": step_s,
        "covered": sum(seconds.values()) / step_s,
        "attributed": sum(s.share for s in shares if s.op_type),
        "by_type": [{"op_type": t, "direction": d, "share": v} for (t, d), v in _largest_first(by_type)[:SHOWN]],
        "operators": [asdict(s) for s in shares[:SHOWN]],
    }
    (folder / "profile.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
