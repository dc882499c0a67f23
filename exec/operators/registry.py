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
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator

__all__ = ["Context", "Lowering", "Value", "lowering", "lowers", "registered", "static", "step_context", "text"]

Value = Array | np.ndarray
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an operator may know about the step besides its inputs.

    key         JAX random key of seed and step
    samples     global indices of the samples of this microbatch, int32 (microbatch,)
    training    False while evaluating: dropout is the identity, batch normalisation uses its running statistics
    salt        tells the operators of a graph apart (set by the segment)
    batch_axis  the axis of the operator's first input along which samples lie, None if none (set by the segment)
    """

    key: Array
    samples: Array
    training: bool = True
    salt: int = 0
    batch_axis: int | None = 0

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
    Context, data_fields=["key", "samples"], meta_fields=["training", "salt", "batch_axis"]
)


def step_context(seed: int, step: Array | int, samples: Value, training: bool = True) -> Context:
    """The context of one microbatch: its samples' global indices at one step of a run.

    >>> step_context(seed=0, step=3, samples=np.arange(4)).samples.shape
    (4,)
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return Context(key=key, samples=jnp.asarray(samples, jnp.int32), training=training)


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One registered function; calling it computes an operator."""

    op_type: str
    domain: str
    since: int
    function: Callable[..., Any]
    wants_context: bool

    def __call__(self, node: Operator, *values: Value | None, context: Context) -> tuple[Value, ...]:
        """The node's outputs, always as a tuple."""
        more = {"context": context} if self.wants_context else {}
        result = self.function(node, *values, **more)
        return result if isinstance(result, tuple) else (result,)


_LOWERINGS: dict[tuple[str, str], dict[int, Lowering]] = {}


def lowers(*op_types: str, since: int = 1, domain: str = "") -> Callable[[Function], Function]:
    """Registers a function as the computation of ONNX operators, from opset `since` on."""

    def register(function: Function) -> Function:
        wants_context = "context" in inspect.signature(function).parameters
        for op_type in op_types:
            versions = _LOWERINGS.setdefault((domain, op_type), {})
            if since in versions:
                raise ValueError(
                    f"{op_type} is registered twice for opset {since}: {versions[since].function}, {function}"
                )
            versions[since] = Lowering(
                op_type=op_type, domain=domain, since=since, function=function, wants_context=wants_context
            )
        return function

    return register


def lowering(node: Operator, opset: int) -> Lowering:
    """The newest registration for `node` that is not newer than `opset`. Raises ModelError where there is none."""
    versions = _LOWERINGS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), {})
    fitting = [since for since in versions if since <= opset]
    if fitting:
        return versions[max(fitting)]
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if versions:
        why = f"known from opset {min(versions)} on, this graph has opset {opset}"
    else:
        near = get_close_matches(node.op_type, registered(node.domain), n=1)
        why = "not known to the executor" + (f"; did you mean {near[0]}?" if near else "")
    raise ModelError(
        f"operator {name} of node {node.name!r} cannot be run: {why}. "
        "To add it, write one function: see CONTRIBUTING.md, 'adding an operator'."
    )


def registered(domain: str = "") -> tuple[str, ...]:
    """The names of all operators that can be run, sorted."""
    return tuple(sorted(op_type for d, op_type in _LOWERINGS if d == domain))


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
    raise ModelError(
        f"input '{name}' of {node.op_type} node {node.name!r} is computed from data, but the executor compiles for "
        "fixed shapes and needs its value before the run. Bind symbolic dims at import (hpdlf import --bind NAME=N)."
    )


def text(node: Operator, attribute: str, default: str) -> str:
    """A string attribute."""
    value = node.attributes.get(attribute, default)
    return value.decode() if isinstance(value, bytes) else str(value)
