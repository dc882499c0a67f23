"""How each convolution of a planned model is to be computed: as measured on the machine that the plan is for, else as expected."""

from __future__ import annotations

from dataclasses import dataclass

from ..hwprofiles import Cluster
from ..models.cost import ObservationDatabase
from ..models.cost.convolutions import convolutions
from ..models.cost.lowering_choice import MeasuredWays, choose_all, measured_ways
from ..models.cost.lowerings import ways
from ..models.onnxpp import Graph
from ..models.onnxpp.hints import Hints
from ..models.plan import Strategy

__all__ = ["Hinted", "hint_lowerings"]


@dataclass(frozen=True, kw_only=True)
class Hinted:
    """Hints for a model under a plan.

    unmeasured       directions of convolutions where several ways are open and none was measured
    batch, threads   that a rank computes at once, and with
    """

    hints: Hints
    unmeasured: int
    batch: int
    threads: int
    dtype: str

    @property
    def advice(self) -> str:
        """What is not known, in a sentence."""
        some = f"{self.unmeasured} way{'s' * (self.unmeasured > 1)}"
        return f"{some} to compute convolutions {'are' if self.unmeasured > 1 else 'is'} expected to be the fastest, not measured."

    @property
    def options(self) -> str:
        """Of the command that measures it."""
        precision = "" if self.dtype == "float32" else f" --precision {self.dtype}"
        return f"--batch {self.batch} --threads {self.threads}{precision}"


def hint_lowerings(graph: Graph, on: Cluster, strategy: Strategy, timed: ObservationDatabase | None) -> Hinted:
    """How a device of `on` is to compute each convolution of `graph`.

    timed   holds what was measured: on the machine that the device of this profile was measured on (:meth:`machines`), which is
            this one where nobody measured it. None: nothing was

    Raises:
        DataError: the database cannot be used.
    """
    threads = max(int(float(on.device.compute_units or 1)), 1)  # a rank's, one for each core of its device
    samples, on_cpu = strategy.microbatch_samples, on.device.kind == "cpu"
    measured: MeasuredWays = {}
    if timed is not None and on_cpu:
        from ..exec.environment import examine_machine

        here, machines = examine_machine().fingerprint, timed.machines(on.device.name)
        machine = here if here in machines or not machines else machines[0]
        measured = measured_ways(timed, machine=machine, threads=threads, dtype=strategy.precision)
    hints = choose_all(graph, samples=samples, measured=measured, kind=on.device.kind)
    shapes = convolutions(graph, samples=samples)
    unmeasured = {
        (shapes[name], direction)
        for name, told in hints.items()
        for direction, hint in told.items()
        if hint.source == "modelled" and len(ways(shapes[name], direction)) > 1
    }
    return Hinted(
        hints=hints,
        unmeasured=len(unmeasured) if on_cpu else 0,
        batch=samples,
        threads=threads,
        dtype=strategy.precision,
    )
