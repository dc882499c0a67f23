"""One rank of a training run: it sets up its role's buffers and actions, and interprets the program step by step.

``python -m hpdlf.exec.worker RUN [--resume]`` is what the launcher starts on every rank; everything else stands in the run's folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from ..errors import HpdlfError, RunError
from ..models.onnxpp import annotation, load_onnxpp
from ..models.plan import Partition, load_plan
from ..models.program import Program
from ..models.program.lower import lower, lower_evaluation
from .checkpoint import Checkpoint, latest
from .communication import CommunicationActions, communicators
from .compute import ComputeActions
from .contents import constants_of, first_contents, starting_values, trained_parameters
from .data import Dataset, check_dataset, open_dataset
from .environment import examine_machine, package_versions
from .host import EvaluationHost, TrainingHost
from .interpreter import Interpreter, Moved
from .mpi import detect_mpi_context
from .optimizers import make_optimizer
from .rank_status import RankStatus
from .recording import Recorder
from .run_folder import RunFolder
from .sampling import Sampler, split_samples
from .saving import Saver

__all__ = ["Worker", "leave", "main", "work"]


class Worker:
    """A rank of the run in `folder`."""

    def __init__(self, folder: RunFolder, *, resume: bool, status: RankStatus) -> None:
        self.folder, self.status = folder, status
        self.about = folder.read()
        self.attempt = self.about["first_attempt"] + int(os.environ.get("HPDLF_ATTEMPT", "0"))
        self.plan = load_plan(folder.plan)
        self.recipe, self.strategy = self.plan.recipe, self.plan.strategy
        jax.config.update("jax_enable_x64", self.strategy.precision == "float64")
        self.model = load_onnxpp(Path(self.about["model"]))
        self.program, self.evaluation = self._programs()
        self._interpreters: list[Interpreter] = []
        self.transport = self._connect()
        self.rank = self.transport.rank if self.transport else 0
        self.role, self.scoring_role = self.program.role_of(self.rank), self.evaluation.role_of(self.rank)
        self.replica = self.program.mesh.coordinates(self.rank)["data"]
        self.clock = self.transport.clock() if self.transport else _clock()
        status.plays(self.role.name)

        self.dataset = self._dataset()
        train, held_out = split_samples(self.dataset.samples, self.recipe)
        self.steps = self.recipe.total_steps(samples=self.dataset.samples, batch=self.strategy.batch)
        self.sampler = Sampler(
            train=train, batch=self.strategy.batch, seed=self.recipe.seed, shuffle=self.recipe.data.shuffle
        )
        self.training_host = TrainingHost(
            self.role,
            dataset=self.dataset,
            sampler=self.sampler,
            strategy=self.strategy,
            replica=self.replica,
            report=self._report,
        )
        self.evaluation_host = self._evaluation_host(held_out)
        self.checkpoint = self._checkpoint() if resume else None
        self.first_step = self.checkpoint.step if self.checkpoint else 0
        self._reported_s: float | None = None
        self._build()

    # --- setting up ------------------------------------------------------------------------------------------------------------

    def _programs(self) -> tuple[Program, Program]:
        placed = annotation(self.model, self.plan.configuration)
        cut = Partition(
            stages={name: p.stage for name, p in placed.items()},
            segments={name: p.segment for name, p in placed.items()},
        )
        graph, recipe = self.model.graph, self.recipe
        train = lower(
            graph, cut, self.strategy, optimizer=recipe.optimizer.name, checkpoint_every=recipe.checkpoint_every
        )
        return train, lower_evaluation(graph, cut, self.strategy)

    def _connect(self) -> Any:
        if self.strategy.ranks == 1:
            return None
        from .transport import Transport

        streams = sorted({*communicators(self.program), *communicators(self.evaluation)})
        return Transport(
            self.program.mesh, streams, stopping=lambda: any(i.stopping() for i in self._interpreters)
        )

    def _dataset(self, source: str | None = None) -> Dataset:
        data = self.recipe.data
        dataset = open_dataset(data, base_folder=Path(self.about["base_folder"]), source=source)
        return check_dataset(dataset, self.model.graph, scale=data.scale, precision=self.strategy.precision)

    def _evaluation_host(self, held_out: np.ndarray) -> EvaluationHost:
        asked = self.recipe.evaluation
        other = self._dataset(asked.source) if asked.source is not None else None
        return EvaluationHost(
            self.scoring_role,
            self.model.graph,
            dataset=other or self.dataset,
            held_out=np.arange(other.samples) if other else held_out,
            metric=asked.metric,
            strategy=self.strategy,
            replica=self.replica,
        )

    def _checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, as rank 0 finds it, if this training may go on from it.

        A checkpoint belongs to one model and one order of samples; another cut of the same training may take it up.
        """
        found: Checkpoint | None = latest(self.folder.checkpoints) if self.rank == 0 else None
        if self.transport:
            found = self.transport.share(found)
        if found is None:
            return None
        mine = self._identity()
        different = [f"{k} {found.about.get(k)} there, {v} here" for k, v in mine.items() if found.about.get(k) != v]
        if different:
            raise RunError(
                f"{found.path} is of another training: {'; '.join(different)}. Give the plan the same, or train into a "
                "new folder with `--out`."
            )
        if found.step > self.steps:
            raise RunError(
                f"{found.path} is after step {found.step}, but the plan's training ends after {self.steps}. Give the recipe "
                "more steps and plan again, or train into a new folder with `--out`."
            )
        return found

    def _identity(self) -> dict[str, Any]:
        return {"model": self.model.source_sha256, "batch": self.strategy.batch, "seed": self.recipe.seed}

    def _build(self) -> None:
        graph, strategy = self.model.graph, self.strategy
        precision, dtype = strategy.precision, np.dtype(strategy.precision)
        constants = constants_of(self.model, self.program, self.role)
        values = starting_values(
            self.model, self.program, self.role, recipe=self.recipe, precision=precision, checkpoint=self.checkpoint
        )
        optimizer = make_optimizer(
            self.recipe, total_steps=self.steps, steps_per_epoch=self.sampler.steps_per_epoch
        )
        shared = self._share(values, dtype)
        moved: Moved = {}
        self.saver = Saver(
            self.folder,
            self.role,
            writes=self.replica == 0,
            transport=self.transport,
            recipe=self.recipe,
            plan_sha256=self.about["plan_sha256"],
            trained=trained_parameters(self.program, self.role),
            epoch_of=self.sampler.epoch_of,
            identity=self._identity(),
        )
        training = ComputeActions(
            graph,
            self.program,
            self.role,
            constants=constants,
            precision=precision,
            optimizer=optimizer,
            samples=self.training_host.samples,
            seed=self.recipe.seed,
        )
        scoring = ComputeActions(
            graph,
            self.evaluation,
            self.scoring_role,
            constants=constants,
            precision=precision,
            optimizer=None,
            samples=lambda step, microbatch: np.zeros(self.evaluation.microbatch_samples, np.int32),
            seed=self.recipe.seed,
            training=False,
        )
        self.communication: CommunicationActions | None = None
        messages: Mapping[str, Any] = {}
        scoring_messages: Mapping[str, Any] = {}
        if self.transport:
            self.communication = CommunicationActions(
                self.program, self.role, graph, self.transport, dtype=dtype, moved=moved, shared=shared
            )
            messages = self.communication.actions()
            scoring_messages = CommunicationActions(
                self.evaluation, self.scoring_role, graph, self.transport, dtype=dtype, moved=moved
            ).actions()
        self.interpreter = Interpreter(
            self.role,
            self.rank,
            {**training.actions(), **messages, **self.training_host.actions(), **self.saver.actions()},
            clock=self.clock,
            record=lambda event: self._recorder.event(event),
            attempt=self.attempt,
            moved=moved,
        )
        self.evaluator = Interpreter(
            self.scoring_role,
            self.rank,
            {**scoring.actions(), **scoring_messages, **self.evaluation_host.actions()},
            clock=self.clock,
            moved=moved,
        )
        self._interpreters = [self.interpreter, self.evaluator]
        contents = first_contents(
            self.program, self.role, values, optimizer=optimizer, checkpoint=self.checkpoint, shared=shared
        )
        for buffer, content in contents.items():
            self.interpreter.put(buffer, content)

    def _share(self, values: Mapping[str, np.ndarray], dtype: np.dtype[Any]) -> Any:
        if "shared" not in self.role.buffer or not self.transport:
            return None
        from .transport import SharedVector

        names = self.role.buffer["shared"].tensors
        vector = SharedVector({n: values[n].shape for n in names}, dtype)
        vector.open(values)
        return vector

    # --- running ---------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the checkpoint (or the beginning) to the last step, evaluations in between, and a checkpoint at the end."""
        metrics = self.folder.metrics if self.rank == 0 else None
        trace = self.folder.trace(self.rank, self.attempt)
        with Recorder(trace, metrics, about=self._trace_about(), first_step=self.first_step) as self._recorder:
            at = self.first_step
            for stop in self._stops():
                self.interpreter.run(at, stop)
                self._recorder.flush()
                at = stop
                if stop == self.steps and not self._saved(stop):
                    self.saver.save(self.interpreter, stop)
                if self.evaluation_host.batches:
                    self._evaluate(stop)
        self._write_result()

    def _stops(self) -> list[int]:
        """The steps after which to evaluate, and the last one. A run that was stopped just there evaluates again."""
        per_epoch = self.sampler.steps_per_epoch if self.recipe.evaluation.every == "epoch" else self.steps
        ends = range(per_epoch, self.steps, per_epoch) if self.evaluation_host.batches else ()
        return [*(step for step in ends if step >= max(self.first_step, 1)), self.steps]

    def _saved(self, step: int) -> bool:
        every = self.recipe.checkpoint_every
        return step == self.first_step or (every is not None and step % every == 0)

    def _evaluate(self, step: int) -> None:
        if "shared" in self.role.buffer and self.transport:
            self.transport.barrier()
            self._read_shared()
        for buffer in self.scoring_role.buffers:
            if (buffer.name, None, None) in self.interpreter.values:
                self.evaluator.put(buffer.name, self.interpreter.get(buffer.name))
        self.evaluation_host.start()
        self.evaluator.run(0, len(self.evaluation_host.batches))
        everybody = self.transport.sum if self.transport and self.strategy.solver == "asynchronous" else None
        found = {"metric": self.recipe.evaluation.metric, "value": self.evaluation_host.result(everybody)}
        self._recorder.metric({"step": step, "evaluation": found, "attempt": self.attempt})

    def _read_shared(self) -> None:
        """Everybody has added what it will: take the shared parameters for one's own."""
        arrays, _ = self.interpreter.get("shared").read()
        for buffer in self.role.buffers:
            if buffer.name.startswith("params."):
                held = self.interpreter.get(buffer.name)
                self.interpreter.put(buffer.name, {n: jax.numpy.array(arrays.get(n, held[n])) for n in buffer.tensors})

    def _report(self, step: int, loss: float) -> None:
        now_s = self.clock()
        before_s, self._reported_s = self._reported_s, now_s
        self.status.running(step + 1)
        self._recorder.metric(
            {
                "step": step,
                "loss": loss,
                "samples_per_s": None if before_s is None else self.strategy.batch / (now_s - before_s),
                "time_s": now_s,
                "attempt": self.attempt,
            }
        )

    # --- what is kept ----------------------------------------------------------------------------------------------------------

    def _trace_about(self) -> dict[str, Any]:
        return {
            "plan_sha256": self.about["plan_sha256"],
            "cluster": self.plan.cluster,
            "rank": self.rank,
            "attempt": self.attempt,
            "machine": examine_machine().as_dict(),
            "versions": package_versions(),
        }

    def _write_result(self) -> None:
        """What the run's summary wants of every rank."""
        staleness = self.communication.staleness if self.communication else []
        mine = {
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "mean_staleness": float(np.mean(staleness)) if staleness else None,
        }
        everybody = self.transport.gather(mine) if self.transport else [mine]
        if everybody is not None:
            about = self.folder.read()
            for key in mine:
                about[key] = {str(rank): r[key] for rank, r in enumerate(everybody) if r[key] is not None}
            self.folder.write(about)


def _clock() -> Callable[[], float]:
    zero_s = time.perf_counter()
    return lambda: time.perf_counter() - zero_s


def work(folder: RunFolder, *, resume: bool) -> None:
    """Be one rank of the run in `folder`. What ends it too early stands in the folder before it is raised."""
    # Constants that no backward pass wants are donated all the same; JAX's remark about it is not for users.
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
    context = detect_mpi_context()
    with RankStatus(folder.path, context.rank if context else 0) as status:
        worker = Worker(folder, resume=resume, status=status)
        worker.run()
        if worker.transport:
            worker.transport.barrier()


def leave(error: BaseException, code: int = 1) -> NoReturn:
    """End this process and all ranks at once: they may be waiting for this one, for ever, in calls that nothing interrupts.

    An error that is no user's is shown whole, where it happened.
    """
    if not isinstance(error, HpdlfError):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(code)
    os._exit(code)


def main(arguments: list[str] | None = None) -> int:
    """The entry of a rank."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.exec.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    try:
        work(RunFolder(options.run), resume=options.resume)
    except BaseException as error:
        leave(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
