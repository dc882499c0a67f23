"""Compute instructions as compiled functions: from the parts of an instruction to an action of the interpreter.

A forward part that its own instruction also runs backward becomes one function (the loss's segment, or a whole model on one
rank); an update that follows it joins that function. Everything else is compiled part by part: what passes between parts are
arrays anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..models.onnxpp.graph import Graph
from ..models.program import Instruction, Part, Phase, Program, Role, Task
from ..models.program import Segment as ProgramSegment
from .compiling import compiled
from .interpreter import Action, Values
from .operators import Context, step_context
from .segments import Segment, build_segment

__all__ = ["ComputeActions", "Samples"]

Samples = Callable[[int, int], np.ndarray]
"""The global sample indices of (step, microbatch) on this rank."""

RANDOM_OPERATORS = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to call for a compute instruction: a segment forward, backward, both at once, or the optimiser's update."""

    segment: ProgramSegment | None
    forward: bool
    backward: bool


class ComputeActions:
    """Runs the compute instructions of one role.

    constants   values of the graph's constants that the role's segments read
    shared      the optimiser's update is added to shared parameters (asynchronous): keep the update, not its result
    training    whether operators behave as in training
    waits       a task ends when its results are there; else when they are on their way (nobody times it then)
    """

    def __init__(
        self,
        graph: Graph,
        program: Program,
        role: Role,
        *,
        constants: Mapping[str, np.ndarray],
        precision: str,
        optimizer: optax.GradientTransformation | None,
        samples: Samples,
        seed: int,
        training: bool = True,
        waits: bool = True,
    ) -> None:
        self.graph, self.program, self.role, self.waits = graph, program, role, waits
        self.optimizer, self.samples, self.seed, self.training = optimizer, samples, seed, training
        self.dtype = jnp.dtype(precision)
        self.loss = graph.loss
        self.segments = {
            part.segment: _build(graph, program.segments[part.segment], constants, precision, training)
            for instruction in role.instructions
            for part in instruction.parts
            if part.segment
        }
        random = any(o.op_type in RANDOM_OPERATORS for s in self.segments.values() for o in s.operators)
        self._context = self._context_of if random else self._fixed_context()
        self._updater = self._compiled_update() if optimizer else None
        self._make_context = jax.jit(lambda step, samples: step_context(seed, step, samples, training))

    def actions(self) -> dict[str, Action]:
        """By instruction id."""
        return {i.id: self._action(i) for i in self.role.instructions if i.parts}

    def _context_of(self, step: int, microbatch: int | None) -> Context:
        context = self._make_context(step, self.samples(step, microbatch or 0))
        return replace(context, training=self.training)

    def _fixed_context(self) -> Callable[[int, int | None], Context]:
        """Nothing draws random numbers: one context without arrays serves all steps, and costs nothing."""
        nothing: Any = None
        fixed = Context(key=nothing, samples=nothing, training=self.training)
        return lambda step, microbatch: fixed

    def _action(self, instruction: Instruction) -> Action:
        steps = list(_steps(self.program, instruction.parts))
        whole = all(s.backward or s.segment is None for s in steps) and len(steps) > 1
        kept = [b for b in (*instruction.writes, *instruction.accumulates) if b not in instruction.frees]

        def run(values: Values, context: Context) -> Values:
            local = dict(values)
            for step in steps:
                self._run(step, local, context)
            return {b: local[b] for b in kept if b in local}

        updated = [b for b in instruction.writes if b in instruction.reads]
        operators = [o for s in steps if s.segment for o in self.segments[s.segment.name].operators]
        together = compiled(
            lambda given, renewed, context: run({**given, **renewed}, context), operators, donate_argnums=1
        )

        def action(instruction: Instruction, task: Task, step: int, values: Values) -> Values:
            context = self._context(step, task.microbatch)
            if whole:  # no residual leaves it, so XLA may see it all
                renewed = {b: values.pop(b) for b in updated}
                written: Values = together(values, renewed, context)
            else:
                written = run(values, context)
            return jax.block_until_ready(written) if self.waits else written

        return action

    def _run(self, step: Step, local: Values, context: Context) -> None:
        if step.segment is None:
            self._update(local)
            return
        segment, name, number = self.segments[step.segment.name], step.segment.name, step.segment.number
        seed = {self.loss: jnp.asarray(self.program.loss_weight, self.dtype)} if step.segment.has_loss else {}
        if step.forward:
            given = {**local.get("data", {}), **local.get(f"act.{number - 1}", {})}
            arguments = (local.get(f"params.{name}", {}), local.get(f"state.{name}", {}), given, context)
            if step.backward:
                cotangents = {**local.get(f"cot.{number}", {}), **seed}
                result = segment.forward_backward(*arguments, cotangents, local.get(f"grad.{name}"))
                outputs, new_state, gradients, moving = result
                self._keep_gradients(local, step.segment, gradients, moving)
            elif self.training and step.segment.backward:
                outputs, new_state, local[f"res.{name}"] = segment.forward_residual(*arguments)
            else:
                outputs, new_state = segment.forward(*arguments)
            self._keep_outputs(local, step.segment, outputs, new_state)
        else:
            cotangents = {**local.get(f"cot.{number}", {}), **seed}
            gradients, moving = segment.backward(local[f"res.{name}"], cotangents, local.get(f"grad.{name}"))
            self._keep_gradients(local, step.segment, gradients, moving)

    def _keep_outputs(self, local: Values, segment: ProgramSegment, outputs: Values, new_state: Values) -> None:
        crossing = {t: outputs[t] for t in segment.outputs}
        local[f"act.{segment.number}"] = crossing
        local["predictions"] = crossing
        if segment.state:
            local[f"state.{segment.name}"] = {**local[f"state.{segment.name}"], **new_state}
        if segment.has_loss and self.loss and self.training:
            weighted = outputs[self.loss].reshape(()) * self.program.loss_weight
            local["loss"] = weighted if "loss" not in local else local["loss"] + weighted

    def _keep_gradients(self, local: Values, segment: ProgramSegment, gradients: Values, moving: Values) -> None:
        local[f"grad.{segment.name}"] = {p: gradients[p] for p in segment.parameters}
        local[f"cot.{segment.number - 1}"] = {t: moving[t] for t in segment.differentiable}

    def _update(self, local: Values) -> None:
        assert self._updater is not None
        held = {b: v for b, v in local.items() if b.startswith("params.") and _gradients_of(b) in local}
        parameters = {n: a for v in held.values() for n, a in v.items()}
        gradients = {n: a for b in held for n, a in local[_gradients_of(b)].items()}
        new, local["delta"], local["optimizer"] = self._updater(parameters, local["optimizer"], gradients)
        for buffer, arrays in held.items():
            local[buffer] = {n: new[n] for n in arrays} if new else arrays

    def _compiled_update(self) -> Callable[..., Any]:
        """(parameters, optimiser state, gradients) -> (new parameters, update where it is to be added to shared ones, new state)."""
        assert self.optimizer is not None
        asynchronous, optimizer = "delta" in self.role.buffer, self.optimizer

        def update(parameters: Values, moments: Any, gradients: Values) -> tuple[Values, Values, Any]:
            delta, moments = optimizer.update(gradients, moments, parameters)
            if asynchronous:
                return {}, delta, moments
            return optax.apply_updates(parameters, delta), {}, moments

        # Shared parameters lie in memory that came from MPI: never donated.
        return jax.jit(update, donate_argnums=(1,) if asynchronous else (0, 1))


def _gradients_of(parameters: str) -> str:
    return "grad." + parameters.removeprefix("params.")


def _build(
    graph: Graph, segment: ProgramSegment, constants: Mapping[str, np.ndarray], precision: str, training: bool
) -> Segment:
    outputs = [*segment.outputs, *([graph.loss] if segment.has_loss and graph.loss and training else [])]
    operators = segment.operators
    return build_segment(
        graph,
        operators,
        [*segment.inputs, *segment.data],
        outputs,
        {name: constants[name] for name in segment.constants},
        precision,
        wrt=segment.differentiable,
    )


def _steps(program: Program, parts: tuple[Part, ...]) -> Iterator[Step]:
    """The calls that `parts` come to: forward and backward of one segment in a row are one call."""
    skip = False
    for i, part in enumerate(parts):
        if skip:
            skip = False
            continue
        if part.phase is Phase.UPDATE:
            yield Step(segment=None, forward=False, backward=False)
            continue
        skip = i + 1 < len(parts) and parts[i + 1] == Part(part.segment, Phase.BACKWARD) and part.phase is Phase.FORWARD
        segment = program.segments[part.segment]
        yield Step(segment=segment, forward=part.phase is Phase.FORWARD, backward=skip or part.phase is Phase.BACKWARD)
