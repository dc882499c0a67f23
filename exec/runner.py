"""Runs any graph once for given values: compiled by XLA as far as that reaches, in NumPy where it does not.

Operators that XLA can compile are gathered into *islands* (:mod:`.island`), as large as the operators between them
allow, and each island is one compiled function. What it cannot (strings, sequences, shapes that depend on values) runs
on the host, on NumPy arrays, between islands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ModelError
from ..models.onnxpp.graph import Body, Operator
from .failing import named
from .island import Island
from .operators import Context, host_lowering, lowering
from .operators.interpret import BAKED_BYTES
from .operators.registry import OnlyOnHostError
from .operators.strings import by_codes, is_text

__all__ = ["Runner"]


class Runner:
    """A graph that can be called; what it compiles it keeps.

    >>> from hpdlf.models.onnxpp.graph import Operator
    >>> twice = Operator(name="t", op_type="Add", family="elementwise", inputs=("x", "x"), outputs=("y",))
    >>> run = Runner(Body(name="g", opsets={"": 20}, operators=(twice,), inputs=("x",), outputs=("y",)))
    >>> from hpdlf.exec.operators import step_context
    >>> context = step_context(seed=0, step=0, samples=np.arange(1))
    >>> run([np.ones(2, np.float32)], {}, context)[0].tolist()
    [2.0, 2.0]
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        constants, rest = _constants(body)
        self.operators = _gathered(rest, body)
        self.islands: dict[int, Island] = {}
        self.on_host = {i for i, node in enumerate(self.operators) if not _compiles(node, body.opsets)}
        self._inner: dict[int, Runner] = {}
        self._small = {name: value for name, value in constants.items() if _is_small(value)}
        self._large = {name: value for name, value in constants.items() if name not in self._small}
        self._placed: dict[bool, dict[str, Any]] = {}
        self._last = {name: i for i, node in enumerate(self.operators) for name in node.inputs}
        self._last.update(dict.fromkeys(body.outputs, len(self.operators)))

    def __call__(self, given: Sequence[Any], outer: Mapping[str, Any], context: Context) -> tuple[Any, ...]:
        """The outputs: arrays, lists of them for sequences, None for an empty optional.

        given   the inputs, in order; outer   what the graph reads of the one around it

        Raises ModelError where an operator cannot be run.
        """
        values: dict[str, Any] = {name: outer[name] for name in self.body.reads}
        values.update(self._small)
        values.update(self._on_device())
        values.update(zip(self.body.inputs, given, strict=True))
        settled = set(self._small)
        # Samples are nothing that an arbitrary graph has: random numbers are drawn for whole tensors.
        context = replace(context, batch_axis=None)
        at = 0
        while at < len(self.operators):
            if at in self.on_host or self._holds_host_values(at, values):
                self._run_on_host(at, values, context)
                at += 1
            else:
                at = self._run_island(at, values, settled, context)
            for name in [n for n in values if self._last.get(n, 0) < at]:
                del values[name]
        return tuple(values[name] for name in self.body.outputs)

    def _on_device(self) -> Mapping[str, Any]:
        """Large constants are handed to JAX once, not in every call (and once more where 64-bit types come on)."""
        wide = bool(jax.config.read("jax_enable_x64"))
        if wide not in self._placed:
            self._placed[wide] = {n: v if is_text(v) else jnp.asarray(v) for n, v in self._large.items()}
        return self._placed[wide]

    def _holds_host_values(self, at: int, values: Mapping[str, Any]) -> bool:
        return any(name in values and _is_host_value(values[name]) for name in self.operators[at].inputs if name)

    def _run_on_host(self, at: int, values: dict[str, Any], context: Context) -> None:
        node = self.operators[at]
        operands = [_to_host(values[name]) if name else None for name in node.inputs]
        version = self.body.opsets.get(node.domain, 1)
        function = host_lowering(node, version)
        with named(node):
            if function is not None:
                results = function(node, *operands, context=context.at(node, None), run=self._run_inner)
            elif any(is_text(v) for v in operands):
                results = by_codes(lowering(node, version), node, operands, context.at(node, None))
            else:
                # Nothing but a compiled form: it says itself what it lacks.
                results = lowering(node, version)(node, *operands, context=context.at(node, None))
        values.update({name: v for name, v in zip(node.outputs, results, strict=False) if name})

    def _run_inner(
        self, body: Body, given: Sequence[Any], outer: Mapping[str, Any], context: Context
    ) -> tuple[Any, ...]:
        """Runs a graph inside an operator of this one."""
        runner = self._inner.get(id(body))
        if runner is None:
            runner = self._inner[id(body)] = Runner(body)
        return tuple(map(_to_host, runner(given, outer, context)))

    def _run_island(self, start: int, values: dict[str, Any], settled: set[str], context: Context) -> int:
        """Computes the island that starts here; returns where it ends: `start`, if its first operator cannot be
        compiled after all."""
        if start not in self.islands:
            self.islands[start] = Island(self.operators, start, self.body.opsets)
        island = self.islands[start]
        for end in range(start + 1, island.end):
            if end in self.on_host or self._holds_host_values(end, values):
                break
        else:
            end = island.end
        end, results = island.run(end, values, settled, context, self._last)
        if end == start:
            self.on_host.add(start)
        values.update(results)
        return end


def _constants(body: Body) -> tuple[dict[str, np.ndarray], list[Operator]]:
    """(everything that the body holds as a value, the operators that compute)."""
    constants, rest = dict(body.constants), []
    context: Any = None
    for node in body.operators:
        if node.op_type == "Constant" and not node.domain:
            (value,) = lowering(node, body.opsets.get("", 1))(node, context=context)
            constants[node.outputs[0]] = value
        else:
            rest.append(node)
    return constants, rest


def _gathered(operators: Sequence[Operator], body: Body) -> tuple[Operator, ...]:
    """The operators in an order that is still topological, those for XLA together: as few islands as possible."""
    compiles = {id(node): _compiles(node, body.opsets) for node in operators}
    waiting = list(operators)
    made = {name for node in waiting for name in node.outputs if name}
    order: list[Operator] = []
    compiling, idle = True, 0
    while waiting:
        kept = []
        for node in waiting:
            if compiles[id(node)] == compiling and made.isdisjoint(node.inputs):
                order.append(node)
                made.difference_update(node.outputs)
            else:
                kept.append(node)
        idle = 0 if len(kept) < len(waiting) else idle + 1
        if idle == 2:
            raise ModelError(f"graph {body.name!r} is not in order, or has a cycle; export the model again")
        waiting, compiling = kept, not compiling
    return tuple(order)


def _compiles(node: Operator, opsets: Mapping[str, int]) -> bool:
    try:
        lowering(node, opsets.get(node.domain, 1))
    except OnlyOnHostError:
        return False
    return True


def _is_host_value(value: Any) -> bool:
    return value is None or isinstance(value, list | tuple | dict) or is_text(value)


def _is_small(value: Any) -> bool:
    return not is_text(value) and value.nbytes <= BAKED_BYTES


def _to_host(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_host(v) for v in value]
    if value is None or isinstance(value, dict):
        return value
    return np.asarray(value)
