"""Forward passes in this process, for as many samples as are given: the evaluation program of one rank, batch by batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
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


class Prediction:
    """A graph's `outputs` (default: its own) as it evaluates: dropout is off, normalisations use their statistics.

    constants   values of the graph's constants
    held        the model's parameters and running statistics, by name; :meth:`bind` replaces them

    Weights are arguments of what is compiled. As constants in it they would lie several times in memory while XLA compiles, and be
    copied for every number of samples (ResNet-50: 1.1 GB more). What a call would do to them again and again is done
    when they are bound.
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
    ) -> None:
        self.inference = inference(graph, outputs)
        self.graph, self.precision, self.seed = self.inference.graph, precision, seed
        self._constants = constants
        self._turned = frozenset(_windows(self.graph))
        self._interpreters: dict[int, Interpreter] = {}
        self._data: dict[str, Any] = {}
        self._found: dict[str, jax.Array] = {}
        self.bind(held)

    def bind(self, held: Mapping[str, Any]) -> None:
        """Predict with these values from now on. What depends on them alone is computed now, once."""
        known = {**self._constants, **held}
        values = self.inference.values(known)
        self._parameters: dict[str, jax.Array] = {}
        for name in list(values):  # one after the other: a value that was made here is not kept beside its copy
            value = values.pop(name)
            if name in self._turned:
                value = jax.numpy.asarray(np.ascontiguousarray(np.moveaxis(np.asarray(value), 1, -1)))
            # A copy: what is not made here may be a part of the user's file.
            self._parameters[name] = value if isinstance(value, jax.Array) else jax.numpy.array(value)
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
        computing.segments = {name: s.with_channels_last(self._turned) for name, s in computing.segments.items()}
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


def _windows(graph: Graph) -> Iterator[str]:
    """The parameters that convolutions alone read, as their weights, and that lie otherwise with channels last."""
    kinds = ("Conv", "ConvTranspose")
    weights = {o.inputs[1] for o in graph.operators if o.op_type in kinds and not o.domain}
    others = {
        n for o in graph.operators for i, n in enumerate(o.inputs) if i != 1 or o.op_type not in kinds or o.domain
    }
    for name in graph.parameters:
        if name in weights and name not in others and name not in graph.outputs:
            _, channels, *window = graph.tensors[name].dims(1)
            if channels > 1 and prod(window) > 1:
                yield name


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
