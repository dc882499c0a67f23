"""Small trainings in real ranks: what handing tasks from stream to stream, loading, messages and all-reduces cost as the
executor does them.

A step of some milliseconds is half threads that wake each other and small messages, which no micro-benchmark of an
operator or of MPI sees. So ``hpdlf profile measure`` ends with steps of perceptrons of a few sizes on one rank, on two
as replicas and on two as a pipeline; what their tasks took is observed as that of any run (:func:`.refine.observe`).
Compute tasks are observed as well: they are small, and say what dispatching costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HpdlfError
from ..hwprofiles import Cluster
from ..models.cost import CostModel, Observation
from ..models.onnxpp import Onnxpp, import_model
from ..models.plan import Recipe, Strategy
from .recorded import Recorded, read_run
from .refine import observe
from .trial_plans import write_trial_plan

__all__ = ["REHEARSALS", "REHEARSAL_S", "Rehearsal", "rehearse", "train_briefly"]


# All rehearsals together take about so long, most of it starting processes.
REHEARSAL_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A perceptron of `widths` on `data` x `pipeline` ranks, `batch` samples in all, for `steps` steps.

    bucket_bytes   of gradients: how large the all-reduces are
    """

    widths: tuple[int, ...]
    batch: int
    data: int = 1
    pipeline: int = 1
    microbatches: int = 1
    bucket_bytes: int = 1 << 20
    steps: int = 120

    def strategy(self) -> Strategy:
        """As plans have it."""
        return Strategy(
            batch=self.batch,
            data=self.data,
            pipeline=self.pipeline,
            microbatches=self.microbatches,
            bucket_bytes=self.bucket_bytes,
        )


REHEARSALS = (
    Rehearsal(widths=(64, 64, 10), batch=16, steps=200),
    Rehearsal(widths=(64, 128, 128, 10), batch=16, data=2, bucket_bytes=1 << 16, steps=200),
    Rehearsal(widths=(256, 1024, 2048, 1024, 256, 10), batch=16, data=2, steps=60),
    Rehearsal(widths=(64, 1024, 1024, 10), batch=64, pipeline=2, microbatches=4, steps=60),
    Rehearsal(widths=(64, 4096, 64, 10), batch=256, pipeline=2, microbatches=4, steps=30),
)


def rehearse(
    cluster: Cluster, *, tell: Callable[[str], None] = lambda text: None, chosen: tuple[Rehearsal, ...] = REHEARSALS
) -> Iterator[Observation]:
    """Observations of the rehearsals that `cluster` has ranks for. One that fails is told of and left out."""
    from ..models.zoo import mlp

    with tempfile.TemporaryDirectory(prefix="hpdlf-rehearsal-") as scratch:
        for number, each in enumerate(chosen):
            if each.data * each.pipeline > cluster.n_devices:
                continue
            place = Path(scratch) / str(number)
            place.mkdir()
            try:
                import onnx

                onnx.save(mlp(each.widths), place / "network.onnx")
                model = import_model(place / "network.onnx", loss="softmax_xent")
                run = train_briefly(model, cluster, each.strategy(), place, steps=each.steps)
                yield from (replace(o, run=f"rehearsal {number} {o.time}") for o in observe(run))
            except HpdlfError as error:
                tell(f"a rehearsal on {each.data * each.pipeline} ranks failed: {error}")


def train_briefly(
    model: Onnxpp,
    cluster: Cluster,
    strategy: Strategy,
    place: Path,
    *,
    steps: int,
    optimizer: str = "sgd",
    cost_model: CostModel | None = None,
    run: str = "run",
    tell: Callable[[str], None] = lambda text: None,
) -> Recorded:
    """Train `model` for some steps on random samples in real ranks, by an approved plan in the folder `place` (that of an
    earlier call, if there is one), and read the run.

    Raises:
        RunError: the run failed.
    """
    from ..exec.train import train

    if not (place / "plan.json").is_file():
        _write_plan(model, cluster, strategy, place, steps, optimizer, cost_model)
    return read_run(train(place / "plan.json", place / run, tell=tell).folder)


def _write_plan(
    model: Onnxpp,
    cluster: Cluster,
    strategy: Strategy,
    place: Path,
    steps: int,
    optimizer: str,
    cost_model: CostModel | None,
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    graph = model.graph
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name in (*graph.inputs, *graph.targets):
        tensor = graph.tensors[name]
        dims = tensor.dims(4 * strategy.batch)
        arrays[name] = draw.standard_normal(dims, dtype=np.float32) if tensor.is_float else draw.integers(0, 2, dims)
    np.savez(place / "data.npz", **arrays)
    recipe = Recipe.model_validate(
        {
            "steps": steps,
            "data": {"source": "data.npz"},
            "initialization": "he",
            "optimizer": {"name": optimizer, "learning_rate": 1e-6},
            "evaluation": {"metric": "none"},
        }
    )
    write_trial_plan(model, cluster, strategy, recipe, place, trial="rehearsal", cost_model=cost_model, max_restarts=0)
