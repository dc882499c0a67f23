"""Segments: runs of operators compiled together, forward and backward.

A segment is a pure function ``(parameters, state, inputs, context) -> (outputs, new_state)``. The worker calls one of
its compiled forms: `forward` to evaluate, `forward_residual` then `backward` in a pipeline, `forward_backward` where
both follow on each other.

A residual holds what the backward pass needs. Much of it already lives elsewhere (weights, inputs, outputs); XLA would
copy such values on their way out of the compiled function, so a :class:`Residual` borrows them from the caller: only
what is new costs memory. Whoever keeps a residual must therefore not write into buffers the forward pass was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import ModelError
from ..models.onnxpp.graph import Graph, Operator
from .compiling import compiled
from .operators import Context, Lowering, lowering
from .operators.attention_chains import joined
from .operators.interpret import BAKED_BYTES, in_precision, interpret
from .operators.layout import ChannelsLast

__all__ = ["BAKED_BYTES", "Arrays", "Residual", "Segment", "build_segment"]

Arrays = Mapping[str, Array]

_KINDS = ("constant", "parameter", "state", "input", "output")


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How a residual's leaves go together again: each is a caller's value (by kind and name) or one of the fresh."""

    tree: Any
    sources: tuple[tuple[str, str] | int, ...]
    outputs: tuple[tuple[str, tuple[int, ...], Any], ...]


@dataclass(frozen=True)
class Residual:
    """What a forward pass leaves for its backward pass: a pytree of arrays."""

    fresh: tuple[Array, ...]
    borrowed: tuple[Array, ...]
    recipe: _Recipe

    @property
    def nbytes(self) -> int:
        """Bytes that only this residual keeps alive."""
        return sum(leaf.nbytes for leaf in self.fresh)


jax.tree_util.register_dataclass(Residual, data_fields=["fresh", "borrowed"], meta_fields=["recipe"])


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Operators of a graph as compiled functions.

    inputs, outputs   tensors that come from and go to other segments or the data; an output may be an input (relayed)
    parameters, state what of the graph's parameters and state the operators read; `new_state` has what they replace
    wrt               the float inputs that receive cotangents
    seeds             the float outputs that give cotangents
    """

    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...]
    state: tuple[str, ...]
    new_state: Mapping[str, str]
    wrt: tuple[str, ...]
    seeds: tuple[str, ...]
    dtype: Any
    constants: Arrays
    _pure: Callable[..., tuple[dict[str, Array], dict[str, Array]]]
    _compiled: Mapping[str, Callable[..., Any]]

    def function(self, parameters: Arrays, state: Arrays, inputs: Arrays, context: Context) -> Any:
        """The segment as a pure function, not compiled: for tests, `jax.eval_shape` and larger functions."""
        return self._pure(self.constants, parameters, state, inputs, context)

    def forward(
        self, parameters: Arrays, state: Arrays, inputs: Arrays, context: Context
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """(outputs, new state)."""
        given = self._given(parameters, state, inputs)
        computed, new_state = self._compiled["forward"](self.constants, *given, context)
        return self._with_relayed(computed, inputs), new_state

    def with_channels_last(self, turned: Collection[str]) -> Segment:
        """This segment for inference, :meth:`forward` being given the parameters `turned` as convolutions read them, (M, *kernel, C)
        for (M, C, *kernel). Who turns them once saves turning them in every call.
        """

        def forward(constants: Arrays, parameters: Arrays, state: Arrays, given: Arrays, context: Context) -> Any:
            known = {n: ChannelsLast(v) if n in turned else v for n, v in parameters.items()}
            outputs, new_state = self._pure(constants, known, state, given, context)
            return {n: v for n, v in outputs.items() if n not in self.inputs}, new_state

        return replace(self, _compiled={**self._compiled, "forward": compiled(forward, self.operators)})

    def forward_residual(
        self, parameters: Arrays, state: Arrays, inputs: Arrays, context: Context
    ) -> tuple[dict[str, Array], dict[str, Array], Residual]:
        """(outputs, new state, residual)."""
        given = self._given(parameters, state, inputs)
        computed, new_state, residual = self._compiled["forward_residual"](self.constants, *given, context)
        outputs = self._with_relayed(computed, inputs)
        kinds = dict(zip(_KINDS, (self.constants, *given, outputs), strict=True))
        borrowed = tuple(kinds[s[0]][s[1]] for s in residual.recipe.sources if isinstance(s, tuple))
        return outputs, new_state, replace(residual, borrowed=borrowed)

    def backward(
        self, residual: Residual, cotangents: Arrays, accumulated: Arrays | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """(gradients by parameter, cotangents of the inputs `wrt`).

        `cotangents` by output name; outputs it leaves out count as zero. `accumulated` is added to the gradients and
        given up: its buffers are reused, do not touch them afterwards.
        """
        if accumulated is None:
            return self._compiled["backward"](residual, dict(cotangents))
        return self._compiled["backward_accumulating"](residual, dict(cotangents), dict(accumulated))

    def forward_backward(
        self,
        parameters: Arrays,
        state: Arrays,
        inputs: Arrays,
        context: Context,
        cotangents: Arrays,
        accumulated: Arrays | None = None,
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array]]:
        """(outputs, new state, gradients, input cotangents) in one go, for a segment that ends in the loss.

        `cotangents` seeds the loss, ``{"loss": 1 / (microbatches * replicas)}`` say; `accumulated` as for `backward`.
        """
        given = (self.constants, *self._given(parameters, state, inputs), context, dict(cotangents))
        if accumulated is None:
            result = self._compiled["forward_backward"](*given)
        else:
            result = self._compiled["forward_backward_accumulating"](*given, dict(accumulated))
        computed, new_state, gradients, input_cotangents = result
        return self._with_relayed(computed, inputs), new_state, gradients, input_cotangents

    def _given(
        self, parameters: Arrays, state: Arrays, inputs: Arrays
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        """What of a worker's values this segment reads: a call with more must not compile another version."""
        return (
            {n: parameters[n] for n in self.parameters},
            {n: state[n] for n in self.state},
            {n: inputs[n] for n in self.inputs},
        )

    def _with_relayed(self, computed: Mapping[str, Array], inputs: Arrays) -> dict[str, Array]:
        return {name: inputs[name] if name in self.inputs else computed[name] for name in self.outputs}


def build_segment(
    graph: Graph,
    operators: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    static: Mapping[str, np.ndarray],
    precision: str | None = "float32",
    wrt: Sequence[str] | None = None,
) -> Segment:
    """Makes a segment of the named operators, computed in graph order; each form compiles when it is first called.

    static     values of graph.constants: integers and small floats become part of the code, large floats arguments
    precision  all floats compute in it ("float64" needs jax_enable_x64); None keeps the graph's types
    wrt        inputs that need a cotangent; default: all float ones that are not data of the graph

    Raises ModelError where an operator is unknown or a tensor comes from nowhere, all such problems together.
    """
    wanted = set(operators)
    nodes = tuple(o for o in graph.operators if o.name in wanted)
    problems = [_unknown("operator", name, graph.operator) for name in operators if name not in graph.operator]
    steps: list[tuple[Operator, Lowering]] = []
    for node in nodes:
        try:
            steps.append((node, lowering(node, graph.opsets.get(node.domain, 1))))
        except ModelError as error:
            problems.append(str(error))
    read = {name for node in nodes for name in node.inputs if name}
    made = {name for node in nodes for name in node.outputs if name}
    known = made | set(inputs) | set(graph.parameters) | set(graph.state) | set(static)
    problems += [
        f"tensor {name!r} is neither computed in this segment nor among its inputs, parameters, state or constants"
        for name in sorted(read - known)
    ]
    problems += [_unknown("output", name, made | set(inputs)) for name in outputs if name not in made | set(inputs)]
    if problems:
        raise ModelError(f"graph {graph.name!r} cannot be cut like this:\n  " + "\n  ".join(problems))

    dtype = None if precision is None else jnp.dtype(precision)
    baked, passed = _sorted_constants(static, read - made - set(inputs), dtype)
    state = tuple(s for s in graph.state if s in read and s not in inputs)
    new_state = {s: graph.state[s] for s in graph.state if graph.state[s] in made}
    floats = tuple(n for n in inputs if _is_float(graph, n) and n not in graph.inputs and n not in graph.targets)
    plan = _Plan(
        steps=tuple(joined(steps, {*outputs, *new_state.values()}, static)),
        baked=baked,
        outputs=tuple(outputs),
        new_state=tuple(new_state.items()),
        dtype=dtype,
        batch_axes={node.name: _batch_axis(graph, node) for node in nodes},
    )
    given = floats if wrt is None else tuple(wrt)
    seeds = tuple(n for n in outputs if _is_float(graph, n))
    return Segment(
        operators=nodes,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        parameters=tuple(p for p in graph.parameters if p in read and p not in inputs),
        state=state,
        new_state=MappingProxyType(new_state),
        wrt=given,
        seeds=seeds,
        dtype=dtype,
        constants={name: jnp.asarray(value) for name, value in passed.items()},
        _pure=plan.run,
        _compiled=_compiled(plan, tuple(inputs), given, seeds),
    )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a segment's function needs besides its arguments."""

    steps: tuple[tuple[Operator, Lowering], ...]
    baked: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    new_state: tuple[tuple[str, str], ...]
    dtype: Any
    batch_axes: Mapping[str, int | None]

    def run(
        self, constants: Arrays, parameters: Arrays, state: Arrays, inputs: Arrays, context: Context
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Interprets the operators in order."""
        context = replace(context, precision=self.dtype and self.dtype.name)
        values: dict[str, Any] = dict(self.baked)
        for group in (constants, parameters, state, inputs):
            values.update({name: in_precision(value, context.precision) for name, value in group.items()})
        interpret(self.steps, values, context, self.batch_axes)
        new_state = {name: jnp.asarray(values[new]) for name, new in self.new_state}
        return {name: jnp.asarray(values[name]) for name in self.outputs}, new_state


def _compiled(
    plan: _Plan, inputs: tuple[str, ...], wrt: tuple[str, ...], seeds: tuple[str, ...]
) -> dict[str, Callable[..., Any]]:
    """The compiled forms; each traces once per shape of its arguments."""

    def own(outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {n: v for n, v in outputs.items() if n not in inputs}

    def differentiated(constants: Arrays, parameters: Arrays, state: Arrays, given: Arrays, context: Context) -> Any:
        fixed = {n: v for n, v in given.items() if n not in wrt}

        def function(parameters: Arrays, moving: Arrays) -> Any:
            outputs, new_state = plan.run(constants, parameters, state, {**fixed, **moving}, context)
            return {n: outputs[n] for n in seeds}, (outputs, new_state)

        moving = {n: given[n] for n in wrt}
        _, pullback, (outputs, new_state) = jax.vjp(function, parameters, moving, has_aux=True)
        return outputs, new_state, pullback

    def forward(constants: Arrays, parameters: Arrays, state: Arrays, given: Arrays, context: Context) -> Any:
        outputs, new_state = plan.run(constants, parameters, state, given, context)
        return own(outputs), new_state

    def forward_residual(constants: Arrays, parameters: Arrays, state: Arrays, given: Arrays, context: Context) -> Any:
        outputs, new_state, pullback = differentiated(constants, parameters, state, given, context)
        kinds = dict(zip(_KINDS, (constants, parameters, state, given, own(outputs)), strict=True))
        known = {id(v): (kind, name) for kind, group in reversed(kinds.items()) for name, v in group.items()}
        leaves, tree = jax.tree.flatten(pullback)
        fresh: list[Array] = []
        sources: list[tuple[str, str] | int] = []
        for leaf in leaves:
            source = known.get(id(leaf))
            sources.append(len(fresh) if source is None else source)
            if source is None:
                known[id(leaf)] = ("fresh", str(len(fresh)))
                fresh.append(leaf)
        sources = [int(s[1]) if isinstance(s, tuple) and s[0] == "fresh" else s for s in sources]
        shapes = tuple((n, outputs[n].shape, outputs[n].dtype) for n in seeds)
        recipe = _Recipe(tree=tree, sources=tuple(sources), outputs=shapes)
        return own(outputs), new_state, Residual(fresh=tuple(fresh), borrowed=(), recipe=recipe)

    def pulled(pullback: Any, shapes: Any, cotangents: Arrays, accumulated: Arrays | None) -> Any:
        full = {n: _cotangent(cotangents.get(n), shape, dtype) for n, shape, dtype in shapes}
        gradients, moving = pullback(full)
        if accumulated is not None:
            gradients = {n: accumulated[n] + g for n, g in gradients.items()}
        return gradients, moving

    def backward(residual: Residual, cotangents: Arrays, accumulated: Arrays | None = None) -> Any:
        borrowed = iter(residual.borrowed)
        sources = residual.recipe.sources
        leaves = [residual.fresh[s] if isinstance(s, int) else next(borrowed) for s in sources]
        pullback = jax.tree.unflatten(residual.recipe.tree, leaves)
        return pulled(pullback, residual.recipe.outputs, cotangents, accumulated)

    def forward_backward(
        constants: Arrays,
        parameters: Arrays,
        state: Arrays,
        given: Arrays,
        context: Context,
        cotangents: Arrays,
        accumulated: Arrays | None = None,
    ) -> Any:
        outputs, new_state, pullback = differentiated(constants, parameters, state, given, context)
        shapes = tuple((n, outputs[n].shape, outputs[n].dtype) for n in seeds)
        return own(outputs), new_state, *pulled(pullback, shapes, cotangents, accumulated)

    operators = [operator for operator, _ in plan.steps]
    return {
        "forward": compiled(forward, operators),
        "forward_residual": compiled(forward_residual, operators),
        "backward": compiled(backward, operators),
        "backward_accumulating": compiled(backward, operators, donate_argnums=2),
        "forward_backward": compiled(forward_backward, operators),
        "forward_backward_accumulating": compiled(forward_backward, operators, donate_argnums=6),
    }


def _cotangent(value: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.zeros(shape, dtype) if value is None else jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def _sorted_constants(
    static: Mapping[str, np.ndarray], needed: set[str], dtype: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(those that become part of the code, those that are passed)."""
    baked: dict[str, np.ndarray] = {}
    passed: dict[str, np.ndarray] = {}
    for name in sorted(needed & set(static)):
        value = in_precision(np.asarray(static[name]), dtype)
        (baked if value.nbytes <= BAKED_BYTES else passed)[name] = value
    return baked, passed


def _is_float(graph: Graph, name: str) -> bool:
    return name in graph.tensors and graph.tensors[name].is_float


def _batch_axis(graph: Graph, node: Operator) -> int | None:
    """The axis along which the samples of an operator's first input lie."""
    if not node.inputs or node.inputs[0] not in graph.tensors:
        return None
    dims = graph.tensors[node.inputs[0]].shape
    return next((i for i, d in enumerate(dims) if d.per_sample), None)


def _unknown(what: str, name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"{what} {name!r} does not exist" + (f"; did you mean {near[0]!r}?" if near else "")
