"""A run folder whose "measured" times are those of a machine that is slower than its profile says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import CostModel
from hpdlf.models.onnxpp import annotate, import_model, save_onnxpp
from hpdlf.models.plan import HashedFile, Plan, Recipe, Strategy, file_sha256, write_plan
from hpdlf.models.trace import Trace, write_trace
from hpdlf.models.zoo import small
from hpdlf.sim import Pricing, build, simulate_program
from hpdlf.sim.engine import replay

STEPS = 12


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_run(strategy, slow=2.0, first=5.0): every task takes `slow` times what is predicted, the first step more."""

    def make(strategy: Strategy, *, slow: float = 2.0, hostile: str = "", devices: int = 4) -> Path:
        folder = tmp_path_factory.mktemp("run")
        (folder / "checkpoints").mkdir()
        original = folder / "digits.onnx"
        onnx.save(small.digits_cnn(), original)
        model = import_model(original, loss="softmax_xent")
        cluster = load_cluster(f"generic-x86:1x{devices}")
        cut, program = build(model.graph, cluster, strategy)
        placed = annotate(
            model, configuration="p", stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks
        )
        save_onnxpp(placed, folder / "model.onnx")
        simulation = simulate_program(program, model.graph, cluster, strategy=str(strategy))
        plan = Plan(
            configuration="p",
            model=HashedFile(path="model.onnx", sha256=file_sha256(folder / "model.onnx")),
            cluster=cluster.name,
            cluster_sha256=cluster.sha256,
            cluster_toml=cluster.to_toml(),
            strategy=strategy,
            recipe=Recipe(epochs=1),
            placement=tuple(range(strategy.ranks)),
            reason=f"because {hostile}",
            prediction=simulation.to_dict(),
        )
        write_plan(plan, folder / "plan.json")
        write_trace(simulation.trace, folder / "predicted.trace.jsonl")
        digest = file_sha256(folder / "plan.json")
        _measure(folder, program, model.graph, cluster, slow, digest)
        lines: list[dict[str, object]] = [{"step": s, "loss": 2.0 / (s + 1), "attempt": 0} for s in range(STEPS)]
        lines.append({"step": STEPS, "evaluation": {"metric": "accuracy", "value": 0.975}, "attempt": 0})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        approval = {"approved_by": f"Ada {hostile}", "approved_at": "2026-01-02T03:04:05+00:00"}
        (folder / "approval.json").write_text(json.dumps(approval))
        about = {
            "state": "finished",
            "started": "2026-01-02T03:04:05+00:00",
            "ended": "2026-01-02T03:05:05+00:00",
            "plan_sha256": digest,
            "model": str(folder / "model.onnx"),
            "machine": {"name": f"tower {hostile}", "memory_bytes": 8_000_000_000},
            "versions": {"jax": "1"},
            "energy_j": None,
            "peak_bytes": {"0": 100_000_000},
            "restarts": [f"rank 1 was killed {hostile}"],
            "attempts": [{}],
        }
        (folder / "run.json").write_text(json.dumps(about))
        return folder

    return make


def _measure(folder: Path, program, graph, cluster, slow: float, digest: str) -> None:  # type: ignore[no-untyped-def]
    pricing = Pricing(program=program, graph=graph, cluster=cluster, model=CostModel.default())
    ranks = range(program.mesh.size)
    seconds = {r: {name: slow * e.seconds for name, e in pricing.estimates(r).items()} for r in ranks}
    events = replay(program, seconds, steps=STEPS, communication_overlap=float(cluster.device.communication_overlap))
    first_s = max(e.end_s for e in events if e.step == 0)
    late_s = 4 * first_s  # compiling

    def late(t_s: float) -> float:
        return 5 * t_s if t_s <= first_s else t_s + late_s

    for rank in ranks:
        mine = [e._replace(start_s=late(e.start_s), end_s=late(e.end_s)) for e in events if e.rank == rank]
        trace = Trace(source="measured", events=tuple(mine), about={"plan_sha256": digest, "rank": rank})
        write_trace(trace, folder / f"trace.rank{rank}.attempt0.jsonl")
