"""Operators of a graph that XLA compiles together, and what has to be known before it can.

The target of a Reshape, the axes of a Squeeze must be known when XLA compiles. Which operands these are is found out by
tracing: a lowering that meets an unknown one says so (:class:`NotStaticError`). While an island is traced the values
that it will be called with are at hand. If the operand is one of them, or is computed from a few integers among them,
these become *static*, and what hangs on them is computed at once: the island is compiled once for each of their values.
Otherwise it ends there: its first part is computed, and the next island knows the operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..models.onnxpp.graph import Operator
from .operators import Context, lowering
from .operators.interpret import interpret
from .operators.registry import NotStaticError, OnlyOnHostError

__all__ = ["Island"]

# Integers that may become static although the operand itself is computed from them: shapes, axes, sizes.
FEW = 64
# Compiled functions that an island keeps, the last used: a static operand may have another value in every run.
KEPT = 128
UNKNOWN = (
    NotStaticError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class _EndsHereError(Exception):
    """Tracing cannot go beyond operator number `args[0]`."""


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A function of the inputs `given`, and what it would put out that is known without calling it."""

    function: Callable[..., dict[str, Any]]
    given: tuple[str, ...]
    known: Mapping[str, np.ndarray]


class Island:
    """The operators of a graph from number `start` on.

    end     where it ends at most: what tracing has found out
    static  its inputs that are compiled as values
    """

    def __init__(self, operators: Sequence[Operator], start: int, opsets: Mapping[str, int]) -> None:
        self._operators, self._opsets = operators, opsets
        self.start, self.end = start, len(operators)
        self.static: set[str] = set()
        self.compiled: dict[Any, _Compiled] = {}
        # The values of the run that is going on: a compiled function must not keep them alive.
        self._values: Mapping[str, Any] = {}

    def run(
        self,
        end: int,
        values: Mapping[str, Any],
        settled: set[str],
        context: Context,
        last: Mapping[str, int],
    ) -> tuple[int, dict[str, Any]]:
        """(where it ended, the results that are needed from there on), computing no further than operator `end`.

        settled  names of the values that are known before any run; results that are so too are added
        last     the number of the operator that reads a tensor last

        It ends where it starts if its first operator cannot be compiled.
        """
        self._values = values
        try:
            return self._run(end, values, settled, context, last)
        finally:
            self._values = {}

    def _run(
        self, end: int, values: Mapping[str, Any], settled: set[str], context: Context, last: Mapping[str, int]
    ) -> tuple[int, dict[str, Any]]:
        while end > self.start:
            nodes = self._operators[self.start : end]
            made = {name for node in nodes for name in node.outputs if name}
            read = tuple(dict.fromkeys(n for node in nodes for n in node.inputs if n and n not in made))
            wanted = tuple(sorted(name for name in made if last.get(name, -1) >= end))
            compiled = self.compiled.pop(self._key(end, read, values, settled, context), None)
            try:
                if compiled is None:
                    compiled, results = self._trace(end, wanted, read, values, settled, context)
                else:
                    results = compiled.function({n: values[n] for n in compiled.given}, context)
            except _EndsHereError as error:
                end = self.end = error.args[0]
                continue
            # With the key of now: tracing has found out what is static.
            self.compiled[self._key(end, read, values, settled, context)] = compiled
            if len(self.compiled) > KEPT:
                del self.compiled[next(iter(self.compiled))]
            settled.update(compiled.known)
            return end, {**results, **compiled.known}
        return end, {}

    def _key(
        self, end: int, read: Sequence[str], values: Mapping[str, Any], settled: set[str], context: Context
    ) -> Any:
        """All that a compiled function depends on."""
        parts: list[Any] = []
        for name in read:
            value = values[name]
            if name in self.static or name in settled:
                value = np.asarray(value)
                parts.append((name, value.shape, value.dtype.name, value.tobytes()))
            else:
                parts.append((name, value.shape, value.dtype.name))
        wide = bool(jax.config.read("jax_enable_x64"))
        return end, tuple(parts), wide, context.training, context.precision, context.samples.shape

    def _trace(
        self,
        end: int,
        wanted: Sequence[str],
        read: Sequence[str],
        values: Mapping[str, Any],
        settled: set[str],
        context: Context,
    ) -> tuple[_Compiled, dict[str, Any]]:
        """Compiles the operators up to `end`, and runs them."""
        given = tuple(n for n in read if n not in self.static and n not in settled)
        start_with = {n: np.asarray(values[n]) for n in read if n not in given}
        known: dict[str, Any] = {}

        def function(given: Mapping[str, Any], context: Context) -> dict[str, Any]:
            traced: dict[str, Any] = {**start_with, **given}
            for number in range(self.start, end):
                self._traced(number, traced, context)
            known.update({n: traced[n] for n in wanted if traced[n] is None or isinstance(traced[n], np.ndarray)})
            return {name: traced[name] for name in wanted if name not in known}

        compiled = jax.jit(function)
        results = compiled({name: values[name] for name in given}, context)
        return _Compiled(function=compiled, given=given, known=known), results

    def _traced(self, number: int, traced: dict[str, Any], context: Context) -> None:
        """Adds the results of one operator; raises _EndsHereError where it cannot be compiled with those before."""
        while True:
            try:
                self._interpret(number, traced, context)
                return
            except OnlyOnHostError:
                raise _EndsHereError(number) from None
            except UNKNOWN as error:
                if not self._settle(number, error, traced, context):
                    raise _EndsHereError(number) from None

    def _interpret(self, number: int, traced: dict[str, Any], context: Context) -> None:
        node = self._operators[number]
        try:
            interpret([(node, lowering(node, self._opsets.get(node.domain, 1)))], traced, context, {})
        except NotStaticError as error:
            error.operand = next((n for n in node.inputs if n and traced[n] is error.operand), None)
            raise

    def _settle(self, number: int, error: Exception, traced: dict[str, Any], context: Context) -> bool:
        """Makes inputs static from which operator `number` needs to know something; False where that does not help."""
        node, named = self._operators[number], getattr(error, "operand", None)
        if named is not None:
            names = {named}
        else:  # it does not say which: whatever hangs on few integers
            names = {n for n in node.inputs if n and self._few(self._sources({n}, number, traced)[0])}
        sources, path = self._sources(names, number, traced)
        if not sources or not (sources <= names or self._few(sources)):
            return False
        self.static |= sources
        traced.update({name: np.asarray(self._values[name]) for name in sources})
        for between in path:
            self._interpret(between, traced, context)
        return True

    def _few(self, names: set[str]) -> bool:
        """Whether there are any, and all hold few integers."""
        held = [self._values[name] for name in names]
        return bool(held) and all(v.size <= FEW and np.dtype(v.dtype).kind in "iub" for v in held)

    def _sources(self, names: set[str], number: int, traced: Mapping[str, Any]) -> tuple[set[str], list[int]]:
        """(the inputs of the island that are not known and from which `names` are computed, by which operators)."""
        producer = {n: i for i in range(self.start, number) for n in self._operators[i].outputs if n}
        waiting, seen = list(names), set(names)
        sources: set[str] = set()
        path: set[int] = set()
        while waiting:
            name = waiting.pop()
            if isinstance(traced[name], np.ndarray):
                continue
            if name not in producer:
                sources.add(name)
            elif self._operators[producer[name]].op_type not in ("Shape", "Size"):
                path.add(producer[name])
                fresh = {n for n in self._operators[producer[name]].inputs if n} - seen
                seen |= fresh
                waiting.extend(fresh)
        return sources, sorted(path)
