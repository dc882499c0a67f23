"""Runs any graph once for given values: compiled by XLA as far as that reaches, in NumPy where it does not.

Operators that XLA can compile are gathered into *islands*, as large as the operators between them allow, and each
island is one compiled function. What it cannot (strings, sequences, shapes that depend on values) runs on the host, on
NumPy arrays, between islands.

Which operands must be known before the run (a Reshape's target, say) is found out by tracing: a lowering that meets an
unknown one says so (:class:`NotStaticError`). If the operand is an input of the island, or is computed from a few integers
among them, these become static: the island is compiled once for each of their values. Otherwise the island is cut
there: its first part is computed, and then the operand is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ModelError
from ..models.onnxpp.graph import Body, Operator
from .operators import Context, host_lowering, lowering
from .operators.interpret import BAKED_BYTES, interpret
from .operators.registry import NotStaticError, OnlyOnHostError
from .operators.strings import by_codes, is_text

__all__ = ["Runner"]

# Integers that may become static although the operand itself is computed from them: shapes, axes, sizes.
FEW = 64
UNKNOWN = (
    NotStaticError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclass(eq=False)
class _Island:
    """What tracing has found out about the operators from one on: where they end, and which inputs must be static."""

    end: int
    static: set[str] = field(default_factory=set)
    compiled: dict[Any, tuple[Callable[..., Any], list[int]]] = field(default_factory=dict)


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
        self.operators = _gathered(body)
        self._islands: dict[int, _Island] = {}
        self._on_host = {i for i, node in enumerate(self.operators) if not _compiles(node, body.opsets)}
        self._inner: dict[int, Runner] = {}
        self._large = {name: value for name, value in body.constants.items() if not _is_small(value)}
        self._placed: dict[bool, dict[str, Any]] = {}
        self._last = {name: i for i, node in enumerate(self.operators) for name in node.inputs}
        self._last.update(dict.fromkeys(body.outputs, len(self.operators)))

    def __call__(self, given: Sequence[Any], outer: Mapping[str, Any], context: Context) -> tuple[Any, ...]:
        """The outputs: arrays, lists of them for sequences, None for an empty optional.

        given   the inputs, in order; outer   what the graph reads of the one around it

        Raises ModelError where an operator cannot be run.
        """
        values: dict[str, Any] = {name: outer[name] for name in self.body.reads}
        values.update({name: value for name, value in self.body.constants.items() if name not in self._large})
        values.update(self._on_device())
        values.update(zip(self.body.inputs, given, strict=True))
        # Samples are nothing that an arbitrary graph has: random numbers are drawn for whole tensors.
        context = replace(context, batch_axis=None)
        at = 0
        while at < len(self.operators):
            if at in self._on_host or self._holds_host_values(at, values):
                self._run_on_host(at, values, context)
                at += 1
            else:
                at = self._run_island(at, values, context)
            for name in [n for n in values if self._last.get(n, 0) < at]:
                del values[name]
        return tuple(values[name] for name in self.body.outputs)

    def _on_device(self) -> Mapping[str, Any]:
        """Large constants are handed to JAX once, not in every call (and once more where 64-bit types come on)."""
        wide = bool(jax.config.jax_enable_x64)
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

    def _run_island(self, start: int, values: dict[str, Any], context: Context) -> int:
        """Computes the island that starts here; returns where it ends, `start` where its first operator cannot be
        compiled after all."""
        island = self._islands.get(start)
        if island is None:
            island = self._islands[start] = _Island(end=len(self.operators))
        while True:
            end = self._end(start, island, values)
            steps = self.operators[start:end]
            made = {name for node in steps for name in node.outputs if name}
            read = dict.fromkeys(n for node in steps for n in node.inputs if n and n not in made)
            fixed = {n for n in read if n in island.static or _is_small_constant(n, values, self.body)}
            known = {name: np.asarray(values[name]) for name in read if name in fixed}
            given = {name: values[name] for name in read if name not in fixed}
            wanted = tuple(name for name in made if self._last.get(name, -1) >= end)
            key = (end, wanted, tuple((n, v.shape, v.dtype.str, v.tobytes()) for n, v in known.items()))
            if key not in island.compiled:
                island.compiled[key] = self._compiled(start, end, known, wanted)
            function, place = island.compiled[key]
            try:
                results = function(given, context)
            except OnlyOnHostError:
                del island.compiled[key]
                if place[0] == start:
                    self._on_host.add(start)
                    return start
                island.end = place[0]
                continue
            except UNKNOWN as error:
                del island.compiled[key]
                if not self._learn(island, start, place[0], error, values):
                    self._on_host.add(start)
                    return start
                continue
            values.update(results)
            return end

    def _end(self, start: int, island: _Island, values: Mapping[str, Any]) -> int:
        for i in range(start + 1, island.end):
            if i in self._on_host or self._holds_host_values(i, values):
                return i
        return island.end

    def _compiled(
        self, start: int, end: int, known: Mapping[str, np.ndarray], wanted: tuple[str, ...]
    ) -> tuple[Callable[..., Any], list[int]]:
        """The operators from `start` to `end` as one function, and the place in them that its tracing has reached."""
        opsets, place = self.body.opsets, [start]

        def function(given: Mapping[str, Any], context: Context) -> dict[str, Any]:
            values: dict[str, Any] = {**known, **given}
            for place[0] in range(start, end):
                node = self.operators[place[0]]
                try:
                    interpret([(node, lowering(node, opsets.get(node.domain, 1)))], values, context, {})
                except NotStaticError as error:
                    error.operand = next((n for n in node.inputs if n and values[n] is error.operand), None)
                    raise
            return {name: values[name] for name in wanted}

        return jax.jit(function), place

    def _learn(self, island: _Island, start: int, place: int, error: Exception, values: Mapping[str, Any]) -> bool:
        """Makes inputs static, or cuts the island at operator `place`; False where neither helps."""
        node = self.operators[place]
        names = self._unknown_operands(node, error, values, start, place, island)
        sources = self._sources(names, start, place)
        fresh = sources - island.static
        if names and fresh and (fresh <= set(names) or all(_is_few(values[name]) for name in fresh)):
            island.static |= fresh
            return True
        if place > start:
            island.end = place
            return True
        return False

    def _unknown_operands(
        self,
        node: Operator,
        error: Exception,
        values: Mapping[str, Any],
        start: int,
        place: int,
        island: _Island,
    ) -> list[str]:
        """What should have been known: the operand that the error names, else whatever hangs on few integers."""
        if getattr(error, "operand", None) is not None:
            return [error.operand]  # type: ignore[attr-defined]
        hanging = []
        for name in filter(None, node.inputs):
            sources = self._sources([name], start, place)
            if sources and not sources <= island.static and all(_is_few(values[n]) for n in sources):
                hanging.append(name)
        return hanging

    def _sources(self, names: Sequence[str], start: int, place: int) -> set[str]:
        """The inputs of the island from which `names` are computed, but for constants."""
        producer = {n: node for node in self.operators[start:place] for n in node.outputs if n}
        waiting, seen, sources = list(names), set(names), set()
        while waiting:
            name = waiting.pop()
            if name not in producer:
                sources.add(name)
                continue
            node = producer[name]
            if node.op_type in ("Shape", "Size"):
                continue
            fresh = [n for n in node.inputs if n and n not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
        return {n for n in sources if n not in self.body.constants or n in self._large}


def _gathered(body: Body) -> tuple[Operator, ...]:
    """The operators in an order that is still topological, those for XLA together: as few islands as possible."""
    waiting = list(body.operators)
    made = {name for node in waiting for name in node.outputs if name}
    order: list[Operator] = []
    compiling = True
    while waiting:
        kept = []
        for node in waiting:
            ready = not any(name in made for name in node.inputs)
            if ready and _compiles(node, body.opsets) == compiling:
                order.append(node)
                made.difference_update(node.outputs)
            else:
                kept.append(node)
        if (
            len(kept) == len(waiting)
            and not compiling
            and not any(not any(name in made for name in node.inputs) for node in kept)
        ):
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


def _is_small_constant(name: str, values: Mapping[str, Any], body: Body) -> bool:
    return name in body.constants and _is_small(body.constants[name]) and isinstance(values[name], np.ndarray)


def _is_few(value: Any) -> bool:
    return value.size <= FEW and np.dtype(value.dtype).kind in "iub"


def _to_host(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_host(v) for v in value]
    if value is None or isinstance(value, dict):
        return value
    return np.asarray(value)
