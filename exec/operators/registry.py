"""Which JAX function computes which ONNX operator.

A lowering is a plain function of the node and its inputs, written down with :func:`lowers`::

    @lowers("Relu")
    def relu(node: Operator, x: Value) -> Array:
        return jnp.maximum(x, 0)

* Absent optional inputs arrive as None. A node with several outputs returns a tuple of them.
* An operator whose meaning changed is registered once per meaning: ``@lowers("Squeeze", since=13)``. A graph of opset
  17 gets the registration with the largest `since` that is not above 17.
* Values known before the run (shapes, axes, sizes) arrive as `numpy.ndarray`, data as `jax.Array`. What must be known
  (the axes of a reduction, say) is read with :func:`static`, which explains itself where it is not.
* An operator that behaves differently in training, or draws random numbers, has a keyword argument `context`.
* An operator without a registration that the standard defines by a function body is computed by that body.

What XLA cannot do (strings, sequences, results whose shape depends on values) is written in NumPy, and says so::

    @lowers("NonZero", host=True)
    def non_zero(node: Operator, x: np.ndarray) -> np.ndarray:
        return np.array(np.nonzero(x))

Such a function is called between compiled functions, with NumPy arrays, lists for sequences and None for an empty
optional; one that holds graphs runs them by its keyword argument `run`. An operator may have both forms: the one in
NumPy is then used where an operand is a string or a sequence, or where the other raises :class:`OnlyOnHostError`.
`models/onnxpp/host.py` names the operators that have only the one in NumPy.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .layout import channels_first

__all__ = [
    "Context",
    "Lowering",
    "NotStaticError",
    "OnlyOnHostError",
    "Value",
    "host_lowering",
    "lowering",
    "lowers",
    "needed",
    "registered",
    "static",
    "step_context",
    "text",
]

Value = Array | np.ndarray
Layout = Literal["first", "follows", "any"]
Function = TypeVar("Function", bound=Callable[..., Any])


class NotStaticError(ModelError):
    """An operand that must be known before the run is computed from data; `operand` is that value."""

    operand: Any = None


class OnlyOnHostError(ModelError):
    """This case of an operator cannot be compiled, but its form in NumPy can compute it."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an operator may know about the step besides its inputs.

    key         JAX random key of seed and step
    samples     global indices of the samples of this microbatch, int32 (microbatch,)
    training    False while evaluating: dropout is the identity, batch normalisation uses its running statistics. None
                where a graph is run as it stands: a node trains where it says so itself
    salt        tells the operators of a graph apart (set by the segment)
    batch_axis  the axis of the operator's first input along which samples lie, None if none (set by the segment)
    precision   the type that all floats compute in, None for the graph's own
    """

    key: Array
    samples: Array
    training: bool | None = True
    salt: int = 0
    batch_axis: int | None = 0
    precision: str | None = None

    def at(self, node: Operator, batch_axis: int | None) -> Context:
        """The context of one operator."""
        return replace(self, salt=zlib.crc32(node.name.encode()) & 0x7FFFFFFF, batch_axis=batch_axis)

    def uniform(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Uniform numbers in [0, 1): those of a sample depend on seed, step, operator and its global index alone.

        Where the batch axis holds several rows per sample (batch times sequence), a sample's rows lie together.
        """
        key = jax.random.fold_in(self.key, self.salt)
        if self.batch_axis is None:
            return jax.random.uniform(key, shape, dtype)
        count, axis = self.samples.shape[0], self.batch_axis
        if not count or shape[axis] % count:
            raise ModelError(
                f"{shape[axis]} rows along axis {axis} cannot be split among {count} samples, but random numbers are "
                "drawn per sample. Check that samples lie along the graph's batch dim (hpdlf import --batch-dim)."
            )
        rows = shape[axis] // count
        rest = (rows, *shape[:axis], *shape[axis + 1 :])
        keys = jax.vmap(lambda sample: jax.random.fold_in(key, sample))(self.samples)
        drawn = jax.vmap(lambda k: jax.random.uniform(k, rest, dtype))(keys)
        return jnp.moveaxis(drawn.reshape(shape[axis], *rest[1:]), 0, axis)


jax.tree_util.register_dataclass(
    Context, data_fields=["key", "samples"], meta_fields=["training", "salt", "batch_axis", "precision"]
)


def step_context(seed: int, step: Array | int, samples: Value, training: bool | None = True) -> Context:
    """The context of one microbatch: its samples' global indices at one step of a run.

    >>> step_context(seed=0, step=3, samples=np.arange(4)).samples.shape
    (4,)
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return Context(key=key, samples=jnp.asarray(samples, jnp.int32), training=training)


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One registered function; calling it computes an operator.

    `folds` says that its result is known before the run where its operands are, `layout` which operands it takes (see
    :mod:`.layout`).
    """

    op_type: str
    domain: str
    since: int
    function: Callable[..., Any]
    wants: frozenset[str]
    folds: bool
    layout: Layout = "first"

    def __call__(
        self, node: Operator, *values: Any, context: Context, run: Callable[..., tuple[Any, ...]] | None = None
    ) -> tuple[Any, ...]:
        """The node's outputs, always as a tuple. `run` runs a graph inside an operator, for forms in NumPy."""
        return tuple(map(channels_first, self.as_made(node, *values, context=context, run=run)))

    def as_made(
        self, node: Operator, *values: Any, context: Context, run: Callable[..., tuple[Any, ...]] | None = None
    ) -> tuple[Any, ...]:
        """The same in the layout in which they are made (see :mod:`.layout`)."""
        offered = {"context": context, "run": run}
        result = self.function(node, *values, **{name: offered[name] for name in self.wants})
        return result if isinstance(result, tuple) else (result,)


Registered = dict[tuple[str, str], dict[int, Lowering]]
_LOWERINGS: Registered = {}
_HOST_LOWERINGS: Registered = {}


def lowers(
    *op_types: str,
    since: int = 1,
    domain: str = "",
    host: bool = False,
    folds: bool | None = None,
    layout: Layout = "first",
) -> Callable[[Function], Function]:
    """Registers a function as the computation of operators, from version `since` of the `domain` on.

    `host` registers the form in NumPy. `folds` is whether the result is known before the run where the operands are:
    by default of every function without a `context`. `layout` as in :mod:`.layout`.
    """

    def register(function: Function) -> Function:
        wants = frozenset({"context", "run"} & set(inspect.signature(function).parameters))
        for op_type in op_types:
            versions = (_HOST_LOWERINGS if host else _LOWERINGS).setdefault((domain, op_type), {})
            if since in versions:
                raise ValueError(
                    f"{op_type} is registered twice for opset {since}: {versions[since].function}, {function}"
                )
            versions[since] = Lowering(
                op_type=op_type,
                domain=domain,
                since=since,
                function=function,
                wants=wants,
                folds="context" not in wants if folds is None else folds,
                layout=layout,
            )
        return function

    return register


def _newest(known: Registered, node: Operator, opset: int) -> Lowering | None:
    versions = known.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), {})
    fitting = [since for since in versions if since <= opset]
    return versions[max(fitting)] if fitting else None


def host_lowering(node: Operator, opset: int) -> Lowering | None:
    """The newest form in NumPy that is not newer than `opset`; None where there is none."""
    return _newest(_HOST_LOWERINGS, node, opset)


def lowering(node: Operator, opset: int) -> Lowering:
    """The newest registration for `node` that is not newer than `opset`; without one, the standard's function body.

    Raises OnlyOnHostError where there is nothing but a form in NumPy, ModelError where there is nothing at all.
    """
    found = _newest(_LOWERINGS, node, opset)
    if found is not None:
        return found
    from .functions import by_function_body

    found = by_function_body(node, opset)
    if found is not None:
        return found
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if host_lowering(node, opset) is not None:
        raise OnlyOnHostError(
            f"operator {name} of node {node.name!r} cannot be compiled: its result is no tensor of a shape that is known "
            "before the run. It can be executed (hpdlf.exec.backend) but neither trained nor cut into segments."
        )
    versions = {
        **_LOWERINGS.get((node.domain, node.op_type), {}),
        **_HOST_LOWERINGS.get((node.domain, node.op_type), {}),
    }
    if versions:
        why = f"known from opset {min(versions)} on, this graph has opset {opset}"
    else:
        near = get_close_matches(node.op_type, registered(node.domain), n=1)
        why = "not known to the executor" + (f"; did you mean {near[0]}?" if near else "")
    raise ModelError(
        f"operator {name} of node {node.name!r} cannot be run: {why}. "
        "To add it, write one function: see CONTRIBUTING.md, 'adding an operator'."
    )


def registered(domain: str = "", *, host: bool | None = None) -> tuple[str, ...]:
    """The names of all operators that can be run, sorted; with `host`, of those that have (or lack) a form in NumPy
    alone."""
    compiled = {op_type for d, op_type in _LOWERINGS if d == domain}
    on_host = {op_type for d, op_type in _HOST_LOWERINGS if d == domain}
    if host is None:
        return tuple(sorted(compiled | on_host))
    return tuple(sorted(on_host - compiled if host else compiled))


def static(node: Operator, name: str, value: Value | None) -> np.ndarray:
    """An input that must be known before the run, as a NumPy array. Raises ModelError where it is computed from data.

    >>> node = Operator(name="r", op_type="Reshape", family="view", inputs=("x", "s"), outputs=("y",))
    >>> static(node, "shape", np.array([2, -1])).tolist()
    [2, -1]
    """
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if value is not None and not isinstance(value, jax.core.Tracer):
        return np.asarray(value)
    error = NotStaticError(
        f"input '{name}' of {node.op_type} node {node.name!r} is computed from data, but the executor compiles for "
        "fixed shapes and needs its value before the run. Bind symbolic dims at import (hpdlf import --bind NAME=N)."
    )
    error.operand = value
    raise error


def needed(node: Operator, attribute: str) -> Any:
    """An attribute without which the operator means nothing. Raises ModelError where it is missing."""
    value = node.attributes.get(attribute)
    if value is None:
        raise ModelError(f"{node.op_type} node {node.name!r} lacks its attribute {attribute}; export the model again")
    return value


def text(node: Operator, attribute: str, default: str) -> str:
    """A string attribute."""
    value = node.attributes.get(attribute, default)
    return value.decode() if isinstance(value, bytes) else str(value)
