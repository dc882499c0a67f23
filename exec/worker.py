"""One rank of a training run: it sets up its role's buffers and actions, and interprets the program step by step.

``python -m hpdlf.exec.worker RUN [--resume]`` is what the launcher starts on every rank; everything else stands in the run's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..errors import HpdlfError, RunError
from ..models.onnxpp import Onnxpp, annotation, load_onnxpp, load_values
from ..models.plan import Partition, Plan, load_plan
from ..models.program import Instruction, Task
from ..models.program.lower import lower, lower_evaluation
from ..models.trace import Event, event_line, header_line
from .checkpoint import Shard, latest, pack, packed_names, unpack, write_manifest, write_shard
from .communication import CommunicationActions, communicators
from .compute import ComputeActions
from .data import Dataset, check_dataset, open_dataset
from .environment import examine_machine, package_versions
from .initialization import initial_values
from .interpreter import Interpreter, Values
from .metrics import METRICS, value
from .optimizers import make_optimizer
from .rank_status import RankStatus
from .run_folder import RunFolder
from .sampling import Sampler, padded_batches, part_of_batch, split_samples

__all__ = ["Worker", "main"]

TRACED_FIRST, TRACED_EVERY = 200, 50
"""Every task of so many steps is traced, then of every so-manieth step."""


class Worker:
    """A rank of the run in `folder`."""

    def __init__(self, folder: RunFolder, *, resume: bool, status: RankStatus) -> None:
        self.folder, self.status = folder, status
        self.about = folder.read()
        self.attempt = self.about["first_attempt"] + int(os.environ.get("HPDLF_ATTEMPT", "0"))
        self.base = Path(self.about["base_folder"])
        self.plan: Plan = load_plan(folder.plan)
        self.recipe = self.plan.recipe
        strategy = self.plan.strategy
        if strategy.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        self.model: Onnxpp = load_onnxpp(Path(self.about["model"]))
        self.graph = self.model.graph
        placed = annotation(self.model, self.plan.configuration)
        cut = Partition(
            stages={n: p.stage for n, p in placed.items()}, segments={n: p.segment for n, p in placed.items()}
        )
        optimizer_name = self.recipe.optimizer.name
        self.program = lower(
            self.graph, cut, strategy, optimizer=optimizer_name, checkpoint_every=self.recipe.checkpoint_every
        )
        self.evaluation = lower_evaluation(self.graph, cut, strategy)
        self.transport = self._connect()
        self.rank = self.transport.rank if self.transport else 0
        self.role = self.program.role_of(self.rank)
        self.replica = self.program.mesh.coordinates(self.rank)["data"]
        self.clock = self.transport.clock() if self.transport else _clock()

        dataset = open_dataset(self.recipe.data, base_folder=self.base)
        self.dataset = check_dataset(dataset, self.graph, scale=self.recipe.data.scale, precision=strategy.precision)
        train, held_out = split_samples(self.dataset.samples, self.recipe)
        self.sampler = Sampler(
            train=train, batch=strategy.batch, seed=self.recipe.seed, shuffle=self.recipe.data.shuffle
        )
        self.steps = self.recipe.total_steps(samples=self.dataset.samples, batch=strategy.batch)
        self.scored_dataset, self.scored = self._evaluation_data(held_out)
        self.optimizer = make_optimizer(
            self.recipe, total_steps=self.steps, steps_per_epoch=self.sampler.steps_per_epoch
        )
        self._moved: dict[tuple[str, int | None, int], int] = {}
        self._trace: list[Event] = []
        self._score = np.zeros(2)
        self._reported_s: float | None = None
        self.checkpoint = latest(folder.checkpoints) if resume else None
        self._refuse_another_training()
        self.first_step = self.checkpoint.step if self.checkpoint else 0
        self._build()

    # --- setting up ------------------------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        if self.plan.strategy.ranks == 1:
            return None
        from .transport import Transport

        streams = sorted({*communicators(self.program), *communicators(self.evaluation)})
        return Transport(self.program.mesh, streams, stopping=lambda: self.interpreter.stopping())

    def _evaluation_data(self, held_out: np.ndarray) -> tuple[Dataset, np.ndarray]:
        source = self.recipe.evaluation.source
        if source is None:
            return self.dataset, held_out
        dataset = open_dataset(self.recipe.data, base_folder=self.base, source=source)
        checked = check_dataset(
            dataset, self.graph, scale=self.recipe.data.scale, precision=self.plan.strategy.precision
        )
        return checked, np.arange(checked.samples)

    def _refuse_another_training(self) -> None:
        """A checkpoint belongs to one model and one order of samples; another cut of the same training may take it up."""
        if self.checkpoint is None:
            return
        about, mine = self.checkpoint.about, self._identity()
        different = [f"{key} {about.get(key)} there, {mine[key]} here" for key in mine if about.get(key) != mine[key]]
        if different:
            raise RunError(
                f"{self.checkpoint.path} is of another training: {'; '.join(different)}. Give the plan the same, or train into a "
                "new folder with `--out`."
            )

    def _identity(self) -> dict[str, Any]:
        return {"model": self.model.source_sha256, "batch": self.plan.strategy.batch, "seed": self.recipe.seed}

    def _build(self) -> None:
        strategy, graph = self.plan.strategy, self.graph
        needed = [n for s in self._segments() for n in (*s.parameters, *s.state)]
        constants = load_values(self.model, {c for s in self._segments() for c in s.constants})
        if self.checkpoint:
            names = {f"parameter/{n}" if n in graph.parameters else f"state/{n}": n for n in needed}
            values = {names[k]: v for k, v in self.checkpoint.read(names).items()}
        else:
            values = initial_values(
                graph,
                needed,
                initialization=self.recipe.initialization,
                seed=self.recipe.seed,
                load=lambda wanted: load_values(self.model, wanted),
                precision=strategy.precision,
            )
        dtype = np.dtype(strategy.precision)
        shared = self._share(values, dtype)
        training = ComputeActions(
            graph,
            self.program,
            self.role,
            constants=constants,
            precision=strategy.precision,
            optimizer=self.optimizer,
            samples=self._samples,
            seed=self.recipe.seed,
        )
        evaluating = ComputeActions(
            graph,
            self.evaluation,
            self.evaluation.role_of(self.rank),
            constants=constants,
            precision=strategy.precision,
            optimizer=None,
            samples=lambda step, microbatch: np.zeros(self.program.microbatch_samples, np.int32),
            seed=self.recipe.seed,
            training=False,
        )
        communicating: Mapping[str, Any] = {}
        scoring: Mapping[str, Any] = {}
        if self.transport:
            self.communication = CommunicationActions(
                self.program, self.role, graph, self.transport, dtype=dtype, moved=self._moved, shared=shared
            )
            communicating = self.communication.actions()
            scoring = CommunicationActions(
                self.evaluation, self.evaluation.role_of(self.rank), graph, self.transport, dtype=dtype, moved={}
            ).actions()
        host = {
            "load": self._load,
            "report.loss": self._report_loss,
            "checkpoint": self._checkpoint,
            "commit": self._commit,
        }
        self.interpreter = Interpreter(
            self.role,
            self.rank,
            {**training.actions(), **communicating, **host},
            clock=self.clock,
            record=self._record,
            attempt=self.attempt,
            moved=self._moved,
        )
        host = {"load": self._load_scored, "score": self._score_predictions, "report.score": self._report_score}
        self.evaluator = Interpreter(
            self.evaluation.role_of(self.rank),
            self.rank,
            {**evaluating.actions(), **scoring, **host},
            clock=self.clock,
        )
        self._fill(values, constants, shared)

    def _segments(self) -> list[Any]:
        return [s for s in self.program.segments.values() if s.stage == self.role.coordinates["pipeline"]]

    def _share(self, values: Mapping[str, np.ndarray], dtype: np.dtype[Any]) -> Any:
        if "shared" not in self.role.buffer or not self.transport:
            return None
        from .transport import SharedVector

        names = self.role.buffer["shared"].tensors
        vector = SharedVector({n: values[n].shape for n in names}, dtype)
        vector.open(values)
        return vector

    def _fill(self, values: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray], shared: Any) -> None:
        """Give every RUN buffer its first contents."""
        trained: dict[str, Any] = {}
        for buffer in self.role.buffers:
            match buffer.name.partition(".")[0]:
                case "params" | "state":
                    arrays = {n: jax.numpy.array(values[n]) for n in buffer.tensors}
                    self.interpreter.put(buffer.name, arrays)
                    if buffer.name.startswith("params") and self._is_trained(buffer.name):
                        trained |= arrays
                case "constants":
                    self.interpreter.put(buffer.name, None)
                case "shared":
                    self.interpreter.put(buffer.name, shared)
        if "optimizer" in self.role.buffer:
            moments = self.optimizer.init(trained)
            if self.checkpoint:
                names = packed_names(moments, trained)
                moments = unpack(moments, self.checkpoint.read(names), trained)
                moments = jax.tree.map(jax.numpy.array, moments)
            self.interpreter.put("optimizer", moments)
        self._trained = tuple(trained)

    def _is_trained(self, buffer: str) -> bool:
        return self.program.segments[buffer.removeprefix("params.")].backward

    # --- running ---------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the checkpoint (or the beginning) to the last step, with evaluations between epochs, and a checkpoint at the end."""
        with self.folder.trace(self.rank, self.attempt).open("w") as self._trace_file:
            self._trace_file.write(header_line("measured", self._trace_header()))
            self._metrics = self.folder.metrics.open("a") if self.rank == 0 else None
            at = self.first_step
            for stop in self._stops():
                self.interpreter.run(at, stop)
                at = stop
                self._flush()
                if len(self.scored) and self._evaluates_at(at):
                    self._evaluate(at)
            self._save_last()
            self._flush()
            if self._metrics:
                self._metrics.close()
        self._write_result()

    def _stops(self) -> list[int]:
        per_epoch = self.sampler.steps_per_epoch
        ends = [e for e in range(per_epoch, self.steps, per_epoch) if e > self.first_step]
        if self.recipe.evaluation.every == "end" or not len(self.scored):
            ends = []
        return [*ends, self.steps] if self.first_step < self.steps else []

    def _evaluates_at(self, step: int) -> bool:
        return (
            self.recipe.evaluation.metric != "none"
            and (self.recipe.evaluation.every == "epoch" or step == self.steps)
        )

    def _evaluate(self, step: int) -> None:
        if "shared" in self.role.buffer and self.transport:
            self.transport.barrier()
            self._read_shared()
        for buffer in self.evaluator.role.buffers:
            if (buffer.name, None, None) in self.interpreter.values:
                self.evaluator.put(buffer.name, self.interpreter.get(buffer.name))
        self._batches = padded_batches(self.scored, self.plan.strategy.batch)
        self._score = np.zeros(2)
        self.evaluator.run(0, len(self._batches))
        if self.transport and self.plan.strategy.solver == "asynchronous":
            self._score = self.transport.sum(self._score)
        if self._metrics:
            found = {"metric": self.recipe.evaluation.metric, "value": value(self._score)}
            self._log({"step": step, "evaluation": found, "attempt": self.attempt})

    def _read_shared(self) -> None:
        arrays, _ = self.interpreter.get("shared").read()
        for buffer in self.role.buffers:
            if buffer.name.startswith("params."):
                self.interpreter.put(buffer.name, {n: jax.numpy.array(arrays[n]) for n in buffer.tensors})

    # --- host instructions -----------------------------------------------------------------------------------------------------

    def _samples(self, step: int, microbatch: int) -> np.ndarray:
        strategy = self.plan.strategy
        return self.sampler.rank_indices(
            step, microbatch, self.replica, replicas=strategy.data, microbatches=strategy.microbatches
        )

    def _load(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        names = self.role.buffer["data"].tensors
        arrays = self.dataset.read(self._samples(step, task.microbatch or 0), names)
        return {"data": {n: jax.device_put(a) for n, a in arrays.items()}}

    def _load_scored(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        names = self.evaluator.role.buffer["data"].tensors
        indices = self._part(self._batches[step][0], task)
        arrays = self.scored_dataset.read(indices, names)
        return {"data": {n: jax.device_put(a) for n, a in arrays.items()}}

    def _part(self, batch: np.ndarray, task: Task) -> np.ndarray:
        strategy = self.plan.strategy
        return part_of_batch(
            batch,
            microbatch=task.microbatch or 0,
            replica=self.replica,
            replicas=strategy.data,
            microbatches=strategy.microbatches,
        )

    def _score_predictions(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        valid = self._part(self._batches[step][1], task)
        predictions = np.asarray(values["predictions"][self.graph.outputs[0]])
        labels = np.asarray(values["data"][self.graph.targets[0]])
        pair = METRICS[self.recipe.evaluation.metric](predictions, labels, valid)
        return {"score": pair + values.get("score", 0.0)}

    def _report_score(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._score = self._score + np.asarray(values["score"])
        return {}

    def _report_loss(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self.status.running(step + 1)
        now_s = self.clock()
        loss = float(np.asarray(values["loss"]).reshape(()))
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} at step {step}. Lower `learning_rate` under [optimizer] in the recipe (or add "
                "`clip_tensor_norm`), then plan, approve and train again."
            )
        if self._metrics:
            per_s = self.plan.strategy.batch / (now_s - self._reported_s) if self._reported_s is not None else None
            entry = {"step": step, "loss": loss, "samples_per_s": per_s, "time_s": now_s, "attempt": self.attempt}
            self._log(entry)
        self._reported_s = now_s
        return {}

    def _log(self, entry: Mapping[str, Any]) -> None:
        assert self._metrics is not None
        self._metrics.write(json.dumps(entry) + "\n")
        self._metrics.flush()

    # --- checkpoints -----------------------------------------------------------------------------------------------------------

    def _checkpoint(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        if self.replica == 0:
            self._write_shard(step + 1, values)
        return {"written": np.ones(1)}

    def _write_shard(self, step: int, values: Values) -> None:
        tensors: dict[str, np.ndarray] = {}
        for buffer, held in values.items():
            kind = buffer.partition(".")[0]
            if kind == "params":
                tensors |= {f"parameter/{n}": np.asarray(a) for n, a in held.items()}
            elif kind == "state":
                tensors |= {f"state/{n}": np.asarray(a) for n, a in held.items()}
            elif kind == "optimizer":
                tensors |= pack(held, self._trained)
        if "shared" in values:
            tensors |= {f"parameter/{n}": a for n, a in values["shared"].read()[0].items()}
        name = self.role.name
        shard = write_shard(self.folder.checkpoints, step=step, name=name, tensors=tensors)
        self._note(step, name).write_text(json.dumps(asdict(shard)))

    def _note(self, step: int, role: str) -> Path:
        return self.folder.checkpoints / f"step-{step:08d}" / f"{role}.shard.json"

    def _commit(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        if self.rank == 0:
            self._write_manifest(step + 1)
        return {}

    def _write_manifest(self, step: int) -> None:
        shards = [Shard(**_shard(json.loads(self._note(step, r.name).read_text()))) for r in self.program.roles]
        write_manifest(
            self.folder.checkpoints,
            step=step,
            epoch=self.sampler.epoch_of(step),
            seed=self.recipe.seed,
            plan_sha256=self.about["plan_sha256"],
            shards=shards,
            about=self._identity(),
            keep=self.recipe.keep_checkpoints,
        )

    def _save_last(self) -> None:
        """The state after the last step, unless a checkpoint has it already."""
        if self.transport:
            self.transport.barrier()
        found = latest(self.folder.checkpoints)
        if found and found.step == self.steps:
            return
        if self.replica == 0:
            held = ("params.", "state.", "optimizer", "shared")
            names = [b.name for b in self.role.buffers if b.name.startswith(held)]
            self._write_shard(self.steps, {n: self.interpreter.get(n) for n in names})
        if self.transport:
            self.transport.barrier()
        if self.rank == 0:
            self._write_manifest(self.steps)

    # --- what is kept ----------------------------------------------------------------------------------------------------------

    def _record(self, event: Event) -> None:
        since = event.step - self.first_step
        if since < TRACED_FIRST or event.step % TRACED_EVERY == 0:
            self._trace.append(event)
            if len(self._trace) >= 4096:
                self._flush()

    def _flush(self) -> None:
        events, self._trace = self._trace, []
        self._trace_file.writelines(map(event_line, events))
        self._trace_file.flush()

    def _trace_header(self) -> dict[str, Any]:
        return {
            "plan_sha256": self.about["plan_sha256"],
            "cluster": self.plan.cluster,
            "rank": self.rank,
            "attempt": self.attempt,
            "machine": examine_machine().as_dict(),
            "versions": package_versions(),
        }

    def _write_result(self) -> None:
        """What the run's summary wants of this rank."""
        staleness = self.communication.staleness if self.transport else []
        mine = {
            "rank": self.rank,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "mean_staleness": float(np.mean(staleness)) if staleness else None,
        }
        everybody = self.transport.gather(mine) if self.transport else [mine]
        if everybody is not None:
            about = self.folder.read()
            about["peak_bytes"] = {str(r["rank"]): r["peak_bytes"] for r in everybody}
            about["mean_staleness"] = {str(r["rank"]): r["mean_staleness"] for r in everybody if r["mean_staleness"] is not None}
            self.folder.write(about)


def _shard(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "tensors": tuple(entry["tensors"])}


def _clock() -> Any:
    zero_s = time.perf_counter()
    return lambda: time.perf_counter() - zero_s


def main(arguments: list[str] | None = None) -> int:
    """The entry of a rank."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.exec.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    return work(RunFolder(options.run), resume=options.resume)


def work(folder: RunFolder, *, resume: bool) -> int:
    """Be one rank of the run in `folder`; returns the exit code. A rank that fails ends the others."""
    from .mpi import detect_mpi_context

    # Constants that no backward pass wants are donated all the same; JAX's remark about it is not for users.
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
    context = detect_mpi_context()
    rank = context.rank if context else 0
    status = RankStatus(folder.path, rank)
    worker = None
    try:
        worker = Worker(folder, resume=resume, status=status)
        worker.run()
        status.finished()
        if worker.transport:
            worker.transport.barrier()
        return 0
    except BaseException as error:
        status.failed(error)
        if not isinstance(error, HpdlfError):
            import traceback

            traceback.print_exc()
        sys.stderr.flush()
        if context and context.size > 1:
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
