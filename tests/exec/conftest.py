"""Approved plans of small trainings, and real ranks to run them on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.exec.affinity import allowed_cpus
from hpdlf.exec.data import data_sha256
from hpdlf.exec.environment import rank_environment
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import annotate, import_model, save_onnxpp
from hpdlf.models.plan import HashedFile, Plan, Recipe, Strategy, file_sha256, write_approval, write_plan
from hpdlf.models.trace import write_trace
from hpdlf.models.zoo import small
from hpdlf.sim import build, simulate_program

SAMPLES, FEATURES, CLASSES = 320, 8, 4


def write_samples(path: Path, *, samples: int = SAMPLES, seed: int = 0) -> None:
    """Points in space and the class that a linear rule gives them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, FEATURES))
    np.savez(path, x=x, labels=np.argmax(x @ rng.standard_normal((FEATURES, CLASSES)), axis=1))


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An approved plan in its folder, with the simulation that it rests on."""

    path: Path
    plan: Plan
    simulation: Any
    program: Any


class Planner:
    """Writes approved plans into a folder of their own, all for the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_samples(folder / "samples.npz")

    def __call__(
        self,
        name: str,
        strategy: Strategy,
        *,
        model: onnx.ModelProto | None = None,
        approve: bool = True,
        max_restarts: int = 3,
        steps: int | None = 20,
        **recipe: Any,
    ) -> Planned:
        """An approved plan called `name`; `recipe` fields beside the defaults."""
        fields = {"data": {"source": "samples.npz"}, "optimizer": {"name": "adam", "learning_rate": 0.03}, **recipe}
        training = Recipe.model_validate({"steps": steps, "precision": strategy.precision, **fields})
        original, placed = self.folder / f"{name}.raw.onnx", self.folder / f"{name}.onnx"
        onnx.save(model or small.mlp((FEATURES, 16, 16, CLASSES)), original)
        imported = import_model(original, loss="softmax_xent")
        cluster = load_cluster(f"generic-x86:1x{strategy.ranks}")
        optimizer, every = training.optimizer.name, training.checkpoint_every
        cut, program = build(imported.graph, cluster, strategy, optimizer=optimizer, checkpoint_every=every)
        save_onnxpp(
            annotate(
                imported, configuration=name, stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks
            ),
            placed,
        )
        simulation = simulate_program(
            program,
            imported.graph,
            cluster,
            precision=strategy.precision,
            optimizer=optimizer,
            steps=steps or 3,
            fold=False,
            strategy=str(strategy),
        )
        plan = Plan(
            configuration=name,
            model=HashedFile(path=placed.name, sha256=file_sha256(placed)),
            data_sha256=data_sha256(str(training.data.source), base_folder=self.folder),
            cluster=cluster.name,
            cluster_sha256=cluster.sha256,
            cluster_toml=cluster.to_toml(),
            strategy=strategy,
            recipe=training,
            placement=tuple(range(strategy.ranks)),
            max_restarts=max_restarts,
            prediction=simulation.to_dict(),
        )
        path = self.folder / f"{name}.json"
        write_plan(plan, path)
        write_trace(simulation.trace, path.with_suffix(".trace.jsonl"))
        if approve:
            write_approval(path, approved_by="Ada", data_sha256=plan.data_sha256)
        return Planned(path=path, plan=plan, simulation=simulation, program=program)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled segments are kept for the session: equal ones compile once."""
    folder = tmp_path_factory.mktemp("compiled")
    os.environ.setdefault("HPDLF_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory, compilation_cache: Path) -> Planner:
    """Writes approved plans: ``planner(name, strategy, **recipe)``."""
    return Planner(tmp_path_factory.mktemp("plans"))


RANKS = """
import json, sys
from hpdlf.errors import HpdlfError
from hpdlf.exec.train import train
try:
    for plan, out, resume in json.loads(sys.argv[1]):
        train(plan, out, resume=resume)
except HpdlfError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="session")
def run_under_mpiexec(compilation_cache: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run(ranks, (plan, out, resume), ...)``: one mpiexec whose ranks train one plan after the other."""

    def run(ranks: int, *trainings: tuple[Path, Path, bool]) -> subprocess.CompletedProcess[str]:
        words = json.dumps([(str(plan), str(out), resume) for plan, out, resume in trainings])
        return subprocess.run(
            [*_mpiexec(ranks), sys.executable, "-c", RANKS, words],
            env=rank_environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def _mpiexec(ranks: int) -> Sequence[str]:
    return find_mpiexec().command(ranks, cpus=len(allowed_cpus()), forward=sorted(rank_environment({})))


def read_losses(run: Path) -> list[float]:
    """The loss of every step, of a step that was repeated the last."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_step = {e["step"]: e["loss"] for e in entries if "loss" in e}
    assert sorted(by_step) == list(range(len(by_step)))
    return [by_step[step] for step in sorted(by_step)]


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], list[float]]:
    """``losses(run)``: the loss of every step, from 0 on; of a step that was repeated, the last."""
    return read_losses
