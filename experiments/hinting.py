"""How what has several ways in a planned model is to be computed: as measured on the machine that the plan is for, else as
expected.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..hwprofiles import Cluster
from ..models.cost import ObservationDatabase
from ..models.cost.lowering_choice import MeasuredWays, choose_all, measured_processor, measured_ways
from ..models.cost.lowering_times import processor_of
from ..models.cost.lowerings_graph import computations
from ..models.cost.roofline import storage
from ..models.onnxpp import Graph
from ..models.onnxpp.hints import Hints
from ..models.plan import Strategy

__all__ = ["EXECUTED", "Hinted", "hint_lowerings"]

# Types that ranks compute in; others can only be simulated.
EXECUTED = ("float32", "float64")
# That is appended where nobody says another.
LOSS = "softmax_xent"


@dataclass(frozen=True, kw_only=True)
class Hinted:
    """Hints for a model under a plan.

    measured         distinct shapes and directions whose way was measured for this batch, on these threads
    unmeasured       the others: which way is fastest is estimated
    batch, threads   that a rank computes at once, and with
    """

    hints: Hints
    measured: int
    unmeasured: int
    batch: int
    threads: int
    dtype: str

    def advice(
        self,
        model: str | Path,
        *,
        loss: str | None = LOSS,
        allow_external: Iterable[str | Path] = (),
        database: str | Path | None = None,
    ) -> str:
        """What is not known, and the command that measures it, for a model that is loaded like this."""
        words = ["hpdlf", "tune", model, "--batch", self.batch, "--threads", self.threads]
        words += ["--precision", self.dtype] if self.dtype != "float32" else []
        words += ["--loss", loss] if loss not in (None, LOSS) else []
        for folder in allow_external:
            words += ["--allow-external", folder]
        words += ["--database", database] if database else []
        verb, them = ("is", "it") if self.unmeasured == 1 else ("are", "them")
        return (
            f"Of {self.measured + self.unmeasured} choices how to compute operators {self.unmeasured} {verb} estimated, not "
            f"measured. To measure {them}, run `{shlex.join(map(str, words))}` where this will be trained, and plan again."
        )


def hint_lowerings(graph: Graph, on: Cluster, strategy: Strategy, timed: ObservationDatabase | None) -> Hinted:
    """How a device of `on` is to compute each operator of `graph` that can be computed in several ways.

    timed   holds what was measured: on the machine that the device of this profile was measured on (:meth:`machines`), which is
            this one where nobody measured it. None: nothing was

    Raises:
        DataError: the database cannot be used.
        ProfileError: the device is a processor without a peak of float32.
    """
    from ..exec.affinity import cores_of_rank

    _, threads = cores_of_rank(on, strategy.ranks, available=1)  # what its device has, however many there are here
    samples, on_cpu = strategy.microbatch_samples, on.device.kind == "cpu"
    measured: MeasuredWays = {}
    if timed is not None and on_cpu:
        from ..exec.environment import examine_machine

        here, machines = examine_machine().fingerprint, timed.machines(on.device.name)
        machine = here if here in machines or not machines else machines[0]
        measured = measured_ways(timed, machine=machine, threads=threads, dtype=strategy.precision)
    stored = storage(strategy.precision)
    processor = measured_processor(processor_of(on.device, threads), measured, dtype=stored)
    hints = choose_all(graph, samples=samples, measured=measured, on=processor, dtype=stored)
    shapes = computations(graph, samples=samples)
    sources = {
        (shapes[name], direction): hint.source for name, told in hints.items() for direction, hint in told.items()
    }
    counts = Counter(sources.values())
    return Hinted(
        hints=hints,
        measured=counts["measured"],
        unmeasured=counts["modelled"] if on_cpu and strategy.precision in EXECUTED else 0,
        batch=samples,
        threads=threads,
        dtype=strategy.precision,
    )
