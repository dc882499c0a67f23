"""What simulating large plans costs: seconds and memory, each case in a process of its own.

``python -m hpdlf.experiments.benchmark_scale [CASE ...]`` prints a line of JSON per case. A case is a GPT network under data, tensor and
pipeline parallelism: one of a trillion parameters on 3,072 devices (Narayanan et al. 2021, arXiv 2104.04473, table 1), one on
100,000 devices, a curve of plans with twice the devices each, and one with twice the microbatches each.

`prepare_s` is what comes before: the network's graph, its cut, the program, its prices. `wall_s` is the simulation: finding which ranks
behave alike, a warm and a steady step of one of each, and the steady step's time and shares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

__all__ = ["CASES", "Case", "Scale", "main", "measure", "measure_apart"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network of so many layers, cut into so many parts each way."""

    name: str
    layers: int
    hidden: int
    heads: int
    tensor: int
    pipeline: int
    data: int
    microbatches: int
    most_s: float | None = None

    @property
    def devices(self) -> int:
        """Ranks, one a device."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a case cost. `classes`: ranks that were simulated; `tasks`: of all ranks in one step; `peak_bytes`: of the process."""

    name: str
    devices: int
    microbatches: int
    classes: int
    tasks: int
    step_s: float
    prepare_s: float
    wall_s: float
    peak_bytes: int


def _cases() -> Iterator[Case]:
    yield Case(
        name="trillion parameters", layers=128, hidden=25600, heads=160, tensor=8, pipeline=64, data=6, microbatches=512,
        most_s=1.0,
    )  # fmt: skip
    yield Case(
        name="100,000 devices", layers=100, hidden=12288, heads=96, tensor=8, pipeline=25, data=500, microbatches=64,
        most_s=4.0,
    )  # fmt: skip
    plain = {"layers": 16, "hidden": 4096, "heads": 32, "tensor": 8, "pipeline": 8}
    for doubled in range(11):
        yield Case(name=f"devices x {1 << doubled}", data=1 << doubled, microbatches=64, **plain)
    for doubled in range(4):
        yield Case(name=f"microbatches x {1 << doubled}", data=64, microbatches=64 << doubled, **plain)


CASES = tuple(_cases())


def measure(case: Case) -> Scale:
    """Simulate a case in this process."""
    from ..hwprofiles import load_cluster
    from ..models.cost import CostModel
    from ..models.plan import Strategy
    from ..models.zoo.catalogue import import_network
    from ..sim import Pricing
    from ..sim.cutting import Cutter
    from ..sim.engine import play
    from ..sim.folding import fold

    start = time.perf_counter()
    network = import_network("gpt", layers=case.layers, hidden=case.hidden, heads=case.heads, seq_len=2048, vocab=51200)
    strategy = Strategy(
        batch=case.data * case.microbatches,
        data=case.data,
        tensor=case.tensor,
        pipeline=case.pipeline,
        microbatches=case.microbatches,
        recompute="full",
        precision="float16",
        mixed=True,
    )
    cluster, model = load_cluster(f"dgx-a100:{-(-case.devices // 8)}"), CostModel.default()
    cutter = Cutter(network.graph, cluster, model)
    program = cutter.lower(strategy)
    pricing = Pricing(
        program=program,
        graph=cutter.local(strategy).graph,
        cluster=cluster,
        model=model,
        precision="float16",
        mixed=True,
    )
    priced = fold(program, cluster).representatives
    seconds = {rank: {i: e.seconds for i, e in pricing.estimates(rank).items()} for rank in priced}
    prepared = time.perf_counter()
    folding = fold(program, cluster)
    overlap = float(cluster.device.communication_overlap)
    played = play(program, seconds, folding=folding, steps=2, communication_overlap=overlap)
    before_s, end_s = played.step_ends_s
    played.busy_s(before_s)
    done = time.perf_counter()
    tasks = sum(len(role.passes[name]) for role in program.roles for name, _ in role.schedule)
    return Scale(
        name=case.name,
        devices=case.devices,
        microbatches=case.microbatches,
        classes=len(folding.representatives),
        tasks=tasks * case.tensor * case.data,
        step_s=end_s - before_s,
        prepare_s=prepared - start,
        wall_s=done - prepared,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_apart(case: Case, *, repeats: int = 1) -> Scale:
    """Simulate a case in processes of its own; the fastest of them."""
    found = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "hpdlf.experiments.benchmark_scale", case.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(Scale(**json.loads(said)))
    return min(found, key=lambda scale: scale.wall_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_scale", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(names)} (default: all, each in its own process)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.case if name not in names]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}: there are {', '.join(names)}")
    chosen = [case for case in CASES if case.name in (options.case or names)]
    for case in chosen:
        scale = measure(case) if len(chosen) == 1 else measure_apart(case)
        print(json.dumps(asdict(scale)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
