"""One rank of a training run: it sets up its role's buffers and actions, and interprets the program step by step.

``python -m hpdlf.exec.worker RUN [--resume]`` is what the launcher starts on every rank; everything else stands in the
run's folder.
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
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import optax

from ..errors import HpdlfError
from ..models.onnxpp import released
from ..models.program import Program, Role
from .affinity import bind_rank
from .allocator import give_back
from .assignment import Assignment, TrainingData
from .checkpoint import Checkpoint
from .communication import CommunicationActions, communicators
from .compute import ComputeActions
from .contents import constants_of, first_contents, starting_values, trained_parameters
from .environment import examine_conditions, examine_machine, package_versions
from .host import EvaluationHost, TrainingHost
from .interpreter import Action, Interpreter, Moved
from .mpi import detect_mpi_context
from .optimizers import make_optimizer
from .rank_status import RankStatus
from .recording import Recorder
from .run_folder import RunFolder
from .saving import Saver

__all__ = ["Worker", "leave", "main", "work"]


class Worker:
    """A rank of the run in `folder`. Whatever is wrong with the run's files or data is found before :meth:`run`."""

    def __init__(self, folder: RunFolder, *, resume: bool, status: RankStatus) -> None:
        self.folder, self.status = folder, status
        self.task = Assignment.read(folder)
        self.recipe, self.strategy, self.program = self.task.recipe, self.task.strategy, self.task.program
        jax.config.update("jax_enable_x64", self.strategy.precision == "float64")
        # A rank waits for every result anyway; computed on the calling thread, the workspace of one is freed before the next begins.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self._interpreters: list[Interpreter] = []
        self.transport = self._connect()
        self.rank = self.transport.rank if self.transport else 0
        self.role = self.program.role_of(self.rank)
        self.scoring_role = self.task.evaluation.role_of(self.rank)
        self.replica = self.program.mesh.coordinates(self.rank)["data"]
        self.clock = self.transport.clock() if self.transport else _clock()
        status.plays(self.role.name)
        self.data = TrainingData.open(self.task)
        self.checkpoint = self._checkpoint() if resume else None
        self.first_step = self.checkpoint.step if self.checkpoint else 0
        self._reported_s: float | None = None
        self._build()

    # --- setting up ---------------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        if self.strategy.ranks == 1:
            return None
        from .transport import Transport

        streams = sorted({*communicators(self.program), *communicators(self.task.evaluation)})
        return Transport(self.program.mesh, streams, stopping=lambda: any(i.stopping() for i in self._interpreters))

    def _checkpoint(self) -> Checkpoint | None:
        """The one that rank 0 finds: on a network's disk others may not see it yet."""
        found = self.task.checkpoint(steps=self.data.steps) if self.rank == 0 else None
        return self.transport.share(found) if self.transport else found

    def _build(self) -> None:
        model, precision = self.task.model, self.strategy.precision
        constants = constants_of(model, self.program, self.role)
        values = starting_values(
            model, self.program, self.role, recipe=self.recipe, precision=precision, checkpoint=self.checkpoint
        )
        optimizer = make_optimizer(
            self.recipe, total_steps=self.data.steps, steps_per_epoch=self.data.sampler.steps_per_epoch
        )
        shared = self._share(values, np.dtype(precision))
        moved: Moved = {}
        self.interpreter = Interpreter(
            self.role,
            self.rank,
            self._training_actions(constants, optimizer, moved, shared),
            clock=self.clock,
            record=lambda event: self._recorder.event(event),
            attempt=self.task.attempt,
            moved=moved,
        )
        self.evaluator = Interpreter(
            self.scoring_role, self.rank, self._evaluation_actions(constants, moved), clock=self.clock, moved=moved
        )
        self._interpreters = [self.interpreter, self.evaluator]
        contents = first_contents(
            self.program, self.role, values, optimizer=optimizer, checkpoint=self.checkpoint, shared=shared
        )
        for buffer, content in contents.items():
            self.interpreter.put(buffer, content)
        # The buffers hold what this rank needs of them.
        self.task = replace(self.task, model=released(model, (*model.graph.parameters, *model.graph.state)))

    def _training_actions(
        self,
        constants: Mapping[str, np.ndarray],
        optimizer: optax.GradientTransformation,
        moved: Moved,
        shared: Any,
    ) -> dict[str, Action]:
        host = TrainingHost(
            self.role,
            dataset=self.data.dataset,
            sampler=self.data.sampler,
            strategy=self.strategy,
            replica=self.replica,
            report=self._report,
        )
        computing = ComputeActions(
            self.task.model.graph,
            self.program,
            self.role,
            constants=constants,
            precision=self.strategy.precision,
            optimizer=optimizer,
            samples=host.samples,
            seed=self.recipe.seed,
        )
        self.communication = self._communication(self.program, self.role, moved, shared)
        self.saver = Saver(
            self.folder,
            self.role,
            writes=self.replica == 0,
            transport=self.transport,
            recipe=self.recipe,
            plan_sha256=self.task.about["plan_sha256"],
            trained=trained_parameters(self.program, self.role),
            epoch_of=self.data.sampler.epoch_of,
            identity=self.task.identity,
        )
        messages = self.communication.actions() if self.communication else {}
        return {**computing.actions(), **messages, **host.actions(), **self.saver.actions()}

    def _evaluation_actions(self, constants: Mapping[str, np.ndarray], moved: Moved) -> dict[str, Action]:
        graph, program = self.task.model.graph, self.task.evaluation
        self.scoring = EvaluationHost(
            self.scoring_role,
            graph,
            dataset=self.data.scored,
            held_out=self.data.held_out,
            metric=self.recipe.evaluation.metric,
            strategy=self.strategy,
            replica=self.replica,
        )
        computing = ComputeActions(
            graph,
            program,
            self.scoring_role,
            constants=constants,
            precision=self.strategy.precision,
            optimizer=None,
            samples=lambda step, microbatch: np.zeros(program.microbatch_samples, np.int32),
            seed=self.recipe.seed,
            training=False,
        )
        communication = self._communication(program, self.scoring_role, moved)
        messages = communication.actions() if communication else {}
        return {**computing.actions(), **messages, **self.scoring.actions()}

    def _communication(
        self, program: Program, role: Role, moved: Moved, shared: Any = None
    ) -> CommunicationActions | None:
        if self.transport is None:
            return None
        graph, dtype = self.task.model.graph, np.dtype(self.strategy.precision)
        return CommunicationActions(program, role, graph, self.transport, dtype=dtype, moved=moved, shared=shared)

    def _share(self, values: Mapping[str, np.ndarray], dtype: np.dtype[Any]) -> Any:
        if "shared" not in self.role.buffer or not self.transport:
            return None
        from .transport import SharedVector

        names = self.role.buffer["shared"].tensors
        vector = SharedVector({n: values[n].shape for n in names}, dtype)
        vector.open(values)
        return vector

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the checkpoint or the beginning to the last step, with evaluations, and a checkpoint at the end."""
        metrics = self.folder.metrics if self.rank == 0 else None
        trace = self.folder.trace(self.rank, self.task.attempt)
        with Recorder(trace, metrics, about=self._trace_about(), first_step=self.first_step) as self._recorder:
            at = self.first_step
            for stop in self._stops():
                self.interpreter.run(at, stop)
                self._recorder.flush()
                at = stop
                if stop == self.data.steps and not self._saved(stop):
                    if self.transport:
                        self.transport.barrier()
                    self.saver.save(self.interpreter, stop)
                if self.scoring.batches:
                    self._evaluate(stop)
        self._write_result()

    def _stops(self) -> list[int]:
        """The steps after which to evaluate, and the last one. A run that was stopped just there evaluates again."""
        per_epoch = self.data.sampler.steps_per_epoch if self.recipe.evaluation.every == "epoch" else self.data.steps
        ends = range(per_epoch, self.data.steps, per_epoch) if self.scoring.batches else ()
        return [*(step for step in ends if step >= max(self.first_step, 1)), self.data.steps]

    def _saved(self, step: int) -> bool:
        """Whether a checkpoint holds what everybody has after `step`, the last one."""
        if step == self.first_step:
            return True
        if self.strategy.solver == "asynchronous":
            return False  # others had not ended when the first replica wrote
        every = self.recipe.checkpoint_every
        return every is not None and step % every == 0

    def _evaluate(self, step: int) -> None:
        if "shared" in self.role.buffer and self.transport:
            self.transport.barrier()  # everybody has added what it will
            self._read_shared()
        for buffer in self.scoring_role.buffers:
            if (buffer.name, None, None) in self.interpreter.values:
                self.evaluator.put(buffer.name, self.interpreter.get(buffer.name))
        self.scoring.start()
        self.evaluator.run(0, len(self.scoring.batches))
        everybody = self.transport.sum if self.transport and self.strategy.solver == "asynchronous" else None
        found = {"metric": self.recipe.evaluation.metric, "value": self.scoring.result(everybody)}
        self._recorder.metric({"step": step, "evaluation": found, "attempt": self.task.attempt})

    def _read_shared(self) -> None:
        """Take the shared parameters for one's own."""
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
                "attempt": self.task.attempt,
            }
        )

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _trace_about(self) -> dict[str, Any]:
        return {
            "plan_sha256": self.task.about["plan_sha256"],
            "cluster": self.task.plan.cluster,
            "rank": self.rank,
            "attempt": self.task.attempt,
            "machine": examine_machine().as_dict(),
            "conditions": examine_conditions(),
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
    bind_rank()
    context = detect_mpi_context()
    with RankStatus(folder.path, context.rank if context else 0) as status:
        worker = Worker(folder, resume=resume, status=status)
        give_back()  # what reading the model has left
        worker.run()
        if worker.transport:
            worker.transport.barrier()


def leave(error: BaseException, code: int = 1) -> NoReturn:
    """End this process and all ranks at once: they may be waiting for it in calls that nothing interrupts.

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
