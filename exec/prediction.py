"""Forward passes in this process, for as many samples as are given: the evaluation program of one rank, batch by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..models.onnxpp.graph import Graph
from ..models.plan import Strategy
from ..models.plan.partition import Partition, partition
from ..models.program import Instruction, Scope, Task
from ..models.program.lower import lower_evaluation
from .compute import ComputeActions
from .folding import inference
from .host import put
from .interpreter import Interpreter, Values
from .tuned import as_tuned

__all__ = ["Prediction", "whole"]

MOST_COMPILED_BYTES = 2**30
"""Weights beyond stay arguments: a compiled module of XLA is a protobuf, which has less than 2 GiB."""


class Prediction:
    """A graph's `outputs` (default: its own) as it evaluates: dropout is off, normalisations use their statistics.

    constants   values of the graph's constants
    held        the model's parameters and running statistics, by name; :meth:`bind` replaces them
    fixed       nobody will: weights of convolutions are compiled in, which saves turning them into another layout in every
                call. Matrix products read theirs as they are
    """

    def __init__(
        self,
        graph: Graph,
        *,
        constants: Mapping[str, np.ndarray],
        held: Mapping[str, Any],
        precision: str,
        seed: int,
        outputs: Sequence[str] | None = None,
        fixed: bool = False,
    ) -> None:
        self.inference = inference(graph, outputs)
        self.graph, self.precision, self.seed = self.inference.graph, precision, seed
        self._constants, self._fixed = constants, fixed
        self._interpreters: dict[int, Interpreter] = {}
        self._data: dict[str, Any] = {}
        self._found: dict[str, jax.Array] = {}
        self.bind(held)

    def bind(self, held: Mapping[str, Any]) -> None:
        """Predict with these values from now on. What depends on them alone is computed now, once."""
        known = {**self._constants, **held}
        values = self.inference.values(known)
        self._parameters = {n: v if isinstance(v, jax.Array) else jax.numpy.array(v) for n, v in values.items()}
        for interpreter in self._interpreters.values():
            self._fill(interpreter)

    def __call__(self, data: Mapping[str, Any], batch: int) -> dict[str, jax.Array]:
        """The outputs for `batch` samples; `data` as :func:`hpdlf.exec.feeding.fed` gives it. They may still be on their way."""
        if batch not in self._interpreters:
            self._interpreters[batch] = self._compiled(batch)
        self._data = put({name: data[name] for name in self.graph.inputs})
        self._interpreters[batch].serve(0)
        self._data = {}
        return self._found

    def _compiled(self, batch: int) -> Interpreter:
        program = lower_evaluation(self.graph, whole(self.graph), Strategy.of(batch=batch, precision=self.precision))
        role = program.role_of(0)
        wanted = {c for segment in program.segments.values() for c in segment.constants}
        computing = ComputeActions(
            as_tuned(self.graph, samples=batch, dtype=self.precision),
            program,
            role,
            constants={name: self._constants[name] for name in wanted},
            precision=self.precision,
            optimizer=None,
            samples=lambda step, microbatch: np.arange(batch, dtype=np.int32),
            seed=self.seed,
            training=False,
            waits=False,
        )
        if self._fixed:
            turned = {n for o in self.graph.operators if o.op_type in ("Conv", "ConvTranspose") for n in o.inputs[1:]}
            weights = {name: array for name, array in self._parameters.items() if name in turned}
            if sum(array.nbytes for array in weights.values()) <= MOST_COMPILED_BYTES:
                computing.segments = {name: segment.bound(weights) for name, segment in computing.segments.items()}
        actions = {
            **computing.actions(),
            "load": lambda instruction, task, step, values: {"data": self._data},
            "score": self._keep,
            "report.score": lambda instruction, task, step, values: {},
        }
        return self._fill(Interpreter(role, 0, actions))

    def _fill(self, interpreter: Interpreter) -> Interpreter:
        for buffer in interpreter.role.buffers:
            if buffer.scope is Scope.RUN and buffer.name.startswith("params."):
                interpreter.put(buffer.name, {name: self._parameters[name] for name in buffer.tensors})
            elif buffer.scope is Scope.RUN:
                interpreter.put(buffer.name, None)  # constants are compiled into the segment
        return interpreter

    def _keep(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._found = values["predictions"]
        return {"score": None}


def whole(graph: Graph) -> Partition:
    """All of a graph as one segment of one stage: nothing is communicated, so nothing is cut."""
    return partition(
        graph,
        operator_s=[1.0] * len(graph.operators),
        stages=1,
        bucket_bytes=None,
        samples=1,
        seconds_per_byte=0.0,
    )
