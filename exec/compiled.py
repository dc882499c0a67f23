"""A model that holds its parameters in this process and makes steps and predictions with them, batch by batch size.

Made by :func:`hpdlf.exec.notebook.compile_model`, which says how it fits to the runs of a plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax

from ..errors import DataError, ModelError, PlanError
from ..models.onnxpp import Onnxpp, export_trained, load_values, released
from ..models.onnxpp.problems import did_you_mean
from ..models.plan import Recipe, Strategy
from ..models.program import Instruction, Program, Task
from ..models.program.lower import lower
from .compute import ComputeActions
from .contents import constants_of, first_contents, starting_values
from .failing import in_a_sentence
from .feeding import converted, fed, named, parts, rows
from .host import put
from .interpreter import Interpreter, Values
from .metrics import METRICS, value
from .optimizers import make_optimizer
from .prediction import Prediction, whole
from .tuned import as_tuned

__all__ = ["CompiledModel"]

Arrays = TypeVar("Arrays")

PART_BYTES = 2**24
LONG_S, PAUSE_S = 5e-3, 2e-4


class CompiledModel:
    """A model in this process. Made by :func:`compile_model`.

    model    the imported model; `model.graph` has its tensors and operators. The weights are held here alone: read
             :attr:`parameters` and :attr:`state`
    recipe   how it is trained
    steps    made so far
    """

    def __init__(self, model: Onnxpp, recipe: Recipe, *, batch: int | None = None, microbatches: int = 1) -> None:
        self.model, self.recipe, self.steps = model, recipe, 0
        self.microbatches, self.batch = microbatches, batch
        self._training: dict[int, Interpreter] = {}
        # Buffers of the step and of the run: all batch sizes work on the same.
        self._values: dict[tuple[str, int | None, int | None], Any] = {}
        self._data: list[dict[str, Any]] = []
        self._seen, self._samples = 0, np.zeros(0, np.int32)
        self._loss: Any = None
        self._predictions: dict[str, Prediction] = {}
        self._stale: set[str] = set()
        with self._precise():
            if self.trains:
                self._optimizer = _optimizer(recipe)
                self._begin(self._program(batch or microbatches))
            else:
                self._values["params", None, None] = _on_device(model, recipe.precision)
        self.model = released(model, (*model.graph.parameters, *model.graph.state))

    # --- training -----------------------------------------------------------------------------------------------------

    @property
    def trains(self) -> bool:
        """Whether the model has a loss, and so can make steps."""
        return self.model.graph.loss is not None

    def step(self, inputs: Any, targets: Any = None, *, samples: Any = None) -> jax.Array:
        """One update of the parameters; the batch's mean loss before it, which may still be computed when this returns.

        inputs    one array, or several in the model's order, or a dictionary by name: NumPy's or JAX's, samples along the batch axis
        targets   the labels, likewise; none where the model computes its loss by itself
        samples   the numbers that these samples have in the whole data, which random operators (dropout) draw by; default:
                  counted on from step to step

        ``float(loss)`` waits for the step; until then the next batch can be prepared. A loss that is no finite number is for the
        caller to notice. What you read earlier, parameters say, stays as it was.

        Raises:
            DataError: the arrays do not fit the model.
            ModelError: an operator cannot compute them, or memory runs out.
        """
        graph = self.model.graph
        if not self.trains:
            raise ModelError(
                f"{graph.name} has no loss, so it cannot be trained: compile it with one, "
                'hpdlf.compile(model, loss="softmax_xent") (or "mse").'
            )
        with self._precise(), in_a_sentence(graph.name):
            arrays, batch = self._given(inputs, targets)
            self._samples = self._numbers(samples, batch)
            interpreter = self._trainer(batch)
            self._data = [put(part) for part in parts(graph.tensors, arrays, batch, self.microbatches)]
            # While a step computes the next is prepared, but not begun: each has a workspace of its own.
            _settle(self._loss)
            self._stale.update(self._predictions)  # before, since a step that fails may have given their arrays up
            try:
                interpreter.serve(self.steps)
            finally:
                self._data = []
                for passing in [slot for slot in self._values if slot[2] is not None]:
                    del self._values[passing]  # what a step that failed has left
            self.steps, self._seen = self.steps + 1, self._seen + batch
            loss: jax.Array = self._loss
            return loss

    def _program(self, batch: int) -> Program:
        strategy = Strategy.of(batch=batch, microbatches=self.microbatches, precision=self.recipe.precision)
        graph = self.model.graph
        return lower(graph, whole(graph), strategy, optimizer=self.recipe.optimizer.name)

    def _begin(self, program: Program) -> None:
        role, recipe = program.role_of(0), self.recipe
        values = starting_values(self.model, program, role, recipe=recipe, precision=recipe.precision, checkpoint=None)
        contents = first_contents(program, role, values, optimizer=self._optimizer, checkpoint=None, shared=None)
        self._values.update({(buffer, None, None): content for buffer, content in contents.items()})
        self._constants = constants_of(self.model, program, role)

    def _trainer(self, batch: int) -> Interpreter:
        """The interpreter for `batch` samples."""
        if batch not in self._training:
            program = self._program(batch)
            role = program.role_of(0)
            samples = batch // self.microbatches
            computing = ComputeActions(
                as_tuned(self.model.graph, samples=samples, dtype=self.recipe.precision),
                program,
                role,
                constants=self._constants,
                precision=self.recipe.precision,
                optimizer=self._optimizer,
                samples=lambda step, microbatch: np.split(self._samples, self.microbatches)[microbatch],
                seed=self.recipe.seed,
                waits=False,
            )
            actions = {**computing.actions(), "load": self._load, "report.loss": self._report}
            self._training[batch] = Interpreter(role, 0, actions)
            self._training[batch].values = self._values
        return self._training[batch]

    def _load(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        return {"data": self._data[task.microbatch or 0]}

    def _report(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._loss = values["loss"]
        return {}

    # --- predicting ---------------------------------------------------------------------------------------------------

    def predict(self, inputs: Any) -> Any:
        """The model's outputs for `inputs` (as in :meth:`step`), with the parameters as they are now: a NumPy array, or a
        dictionary of them by name where the model has several.

        Dropout is off and BatchNormalization uses its running statistics, folded into the convolutions before it. How many
        samples come is free; every new number compiles once more.

        Raises:
            DataError: the arrays do not fit the model.
            ModelError: an operator cannot compute them, or memory runs out.
        """
        graph = self.model.graph
        with self._precise(), in_a_sentence(graph.name):
            prediction = self._prediction("predictions", graph.outputs)
            arrays, batch = self._fed(named(inputs, graph.inputs, "inputs"))
            found = {name: np.asarray(array) for name, array in _settle(prediction(arrays, batch)).items()}
        return found[graph.outputs[0]] if len(graph.outputs) == 1 else found

    def evaluate(self, inputs: Any, targets: Any, *, metric: str = "accuracy", batch: int | None = None) -> float:
        """How good the predictions for `inputs` are.

        metric   "accuracy" (share of samples whose highest score is the label), "mse", or "loss" (the mean of the model's own)
        batch    samples at a time; default: those of the steps, or all at once

        Raises:
            DataError: the arrays do not fit the model or the metric.
            ModelError: there is no loss.
        """
        graph = self.model.graph
        if metric not in ("loss", *METRICS):
            known = ("loss", *METRICS)
            raise PlanError(f"There is no metric {metric!r}; known are {', '.join(known)}{did_you_mean(metric, known)}")
        if batch is not None and batch < 1:
            raise DataError(f"Samples are evaluated `batch` at a time, at least one, not {batch}.")
        if metric == "loss" and not self.trains:
            raise ModelError(f"{graph.name} has no loss: compile it with one, or ask for another metric.")
        parts: list[np.ndarray] = []
        with self._precise(), in_a_sentence(graph.name):
            if metric == "loss":
                assert graph.loss is not None
                prediction = self._prediction("loss", (graph.loss,))
            else:
                prediction = self._prediction("predictions", graph.outputs)
            labels = targets
            if graph.targets:
                arrays, total = self._given(inputs, targets)
                labels = arrays[graph.targets[0]]
            else:
                arrays, total = self._fed(named(inputs, graph.inputs, "inputs"))
                if len(labels) != total:
                    raise DataError(f"There are {total} samples and {len(labels)} targets.")
            size = batch or self.batch or next(iter(self._training), total)
            for start in range(0, total, size):
                last = min(start + size, total)
                part = rows(graph.tensors, arrays, total, start, last)
                found = _settle(prediction(part, last - start))
                if metric == "loss":
                    parts.append(np.array([float(found[graph.loss or ""].reshape(())), 1.0]) * (last - start))
                else:
                    scored = np.asarray(labels)[start:last]
                    parts.append(METRICS[metric](np.asarray(found[graph.outputs[0]]), scored))
        score = value(np.sum(parts, axis=0))
        return float("nan") if score is None else score

    def _prediction(self, what: str, outputs: Iterable[str]) -> Prediction:
        if what not in self._predictions:
            graph = self.model.graph
            needed = [name for name in graph.constants if name not in graph.state]
            self._predictions[what] = Prediction(
                graph,
                constants=load_values(self.model, needed),
                held=self._held(),
                precision=self.recipe.precision,
                seed=self.recipe.seed,
                outputs=tuple(outputs),
            )
        elif what in self._stale:
            self._predictions[what].bind(self._held())
        self._stale.discard(what)
        return self._predictions[what]

    # --- what it holds ------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The trained tensors by name, as they are now. They are copies: later steps do not touch them."""
        held = self._held()
        return {name: np.array(held[name]) for name in self.model.graph.parameters}

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The running statistics by name, likewise."""
        held = self._held()
        return {name: np.array(held[name]) for name in self.model.graph.state}

    def save(self, path: str | Path) -> Path:
        """Write the model as it was imported, without what was appended to train it, with the weights as they are now.

        Raises:
            ModelError: the place cannot be written.
        """
        export_trained(self.model, {**self.parameters, **self.state}, path)
        return Path(path)

    @property
    def summary(self) -> str:
        """What this is, in a few lines."""
        graph, choice = self.model.graph, self.recipe.optimizer
        sizes = sorted(self._training)
        lines = [
            f"{graph.name}: {graph.parameter_count:,} parameters in {len(graph.parameters)} tensors, "
            f"{len(graph.operators)} operators, {self.recipe.precision}",
            *(
                f"  {kind} {name} ({', '.join(map(str, graph.tensors[name].shape))}) {graph.tensors[name].dtype}"
                for kind, names in (("input ", graph.inputs), ("target", graph.targets), ("output", graph.outputs))
                for name in names
            ),
        ]
        if self.trains:
            values = ", ".join(f"{k} {v:g}" for k, v in choice.hyperparameters.items())
            compiled = f"compiled for batches of {', '.join(map(str, sizes))}" if sizes else "not compiled yet"
            lines.append(f"  {choice.name}: {values}; {self.steps} steps made, {compiled}")
        else:
            lines.append("  no loss: it predicts")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary}>"

    def _held(self) -> dict[str, jax.Array]:
        """Parameters and state as they are now. The next step gives these arrays up."""
        return {
            name: array
            for (buffer, _, step), content in self._values.items()
            if step is None and buffer.partition(".")[0] in ("params", "state")
            for name, array in content.items()
        }

    # --- what it is given ---------------------------------------------------------------------------------------------

    def _given(self, inputs: Any, targets: Any) -> tuple[dict[str, Any], int]:
        """The arrays of a step by name, and their samples."""
        graph = self.model.graph
        if isinstance(inputs, Mapping) and targets is None and graph.targets:
            return self._fed(named(inputs, (*graph.inputs, *graph.targets), "inputs and targets"))
        found = named(inputs, graph.inputs, "inputs")
        if graph.targets or targets is not None:
            found |= named(targets, graph.targets, "targets")
        return self._fed(found)

    def _fed(self, found: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        return fed(self.model.graph, found, precision=self.recipe.precision)

    def _numbers(self, samples: Any, batch: int) -> np.ndarray:
        if batch % self.microbatches:
            raise DataError(
                f"{batch} samples do not divide into {self.microbatches} microbatches: give a multiple of them."
            )
        if self.batch is not None and batch != self.batch:
            raise DataError(
                f"This model was compiled for {self.batch} samples a step, {batch} were given: leave `batch` out of "
                "hpdlf.compile to take as many as come."
            )
        if samples is None:
            return np.arange(self._seen, self._seen + batch, dtype=np.int32)
        numbers: np.ndarray = np.asarray(converted(np.asarray(samples), np.dtype(np.int32), "samples"))
        if numbers.shape != (batch,):
            raise DataError(
                f"`samples` are the numbers of {batch} samples, an array of shape {numbers.shape} was given."
            )
        return numbers

    @contextmanager
    def _precise(self) -> Iterator[None]:
        """64-bit types where the run computes in them, whatever the notebook has set."""
        with jax.enable_x64(self.recipe.precision == "float64"):
            yield


def _settle(results: Arrays) -> Arrays:
    """`results` when they are there, and what computed them has ended.

    XLA says that results are there before its thread frees the workspace. Where the one that waits takes over that thread's core, the
    next call begins before, and gets a second workspace: once in ten calls on two cores, hundreds of MB. So the core is left to it.
    """
    began = time.perf_counter()
    jax.block_until_ready(results)
    if time.perf_counter() - began > LONG_S:
        time.sleep(PAUSE_S)
    return results


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The recipe's, where its schedule does not hang on the size of data that nobody knows here."""
    schedule = recipe.schedule
    if recipe.steps is None and schedule.name in ("cosine", "linear"):
        raise PlanError(f"The {schedule.name} schedule ends with the training: write `steps` in the recipe.")
    if schedule.every_epochs is not None:
        raise PlanError("Epochs are not known here: write `every_steps` instead of `every_epochs` in the schedule.")
    return make_optimizer(recipe, total_steps=recipe.steps or 1, steps_per_epoch=1)


def _on_device(model: Onnxpp, precision: str) -> dict[str, jax.Array]:
    """Parameters and state by name; read a few at a time, so that not all of them lie twice in memory."""
    graph = model.graph
    held: dict[str, jax.Array] = {}
    for names in _few((*graph.parameters, *graph.state), lambda name: 4 * prod(graph.tensors[name].dims(1))):
        found = load_values(model, names)
        held |= {name: _held(found[name], precision) for name in names}
        jax.block_until_ready(held)
    return held


def _held(value: np.ndarray, precision: str) -> jax.Array:
    """JAX may take an array for its own that lies well in memory: not one that is still a part of the user's file."""
    wanted = _in_precision(value, precision)
    return jax.numpy.array(wanted) if wanted is value else jax.numpy.asarray(wanted)


def _few(names: Iterable[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    """The names in turn, as many at a time as come to PART_BYTES by `size`."""
    part: list[str] = []
    for name in names:
        part.append(name)
        if sum(map(size, part)) >= PART_BYTES:
            yield part
            part = []
    if part:
        yield part


def _in_precision(array: np.ndarray, precision: str) -> np.ndarray:
    return array.astype(precision) if array.dtype.kind == "f" else array
