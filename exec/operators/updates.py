"""Training inside a graph: optimisers' updates, and gradients of parts of the graph (domain ai.onnx.preview.training)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Body, Operator
from .interpret import outer_values, run_body
from .registry import Context, Value, lowers, needed, text

__all__ = ["adagrad", "adam", "gradient", "momentum"]

DOMAIN = "ai.onnx.preview.training"


def _groups(node: Operator, values: Sequence[Value], kinds: int) -> list[list[Array]]:
    """The operands of each updated tensor: they come sorted by kind (all tensors, then all gradients, ...)."""
    if not values or len(values) % kinds:
        raise ModelError(
            f"{node.op_type} node {node.name!r} has {len(values)} tensors; it needs {kinds} for each one it updates"
        )
    count = len(values) // kinds
    return [[jnp.asarray(v) for v in values[i::count]] for i in range(count)]


def _by_kind(results: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(value for kind in zip(*results, strict=True) for value in kind)


@lowers("Adagrad", domain=DOMAIN)
def adagrad(node: Operator, rate: Value, count: Value, *values: Value) -> tuple[Array, ...]:
    """New values and sums of squares of tensors (Duchi et al. 2011), from values, gradients and sums of squares."""
    get = node.attributes.get
    decay, epsilon, norm = get("decay_factor", 0.0), get("epsilon", 1e-6), get("norm_coefficient", 0.0)

    def update(x: Array, g: Array, h: Array) -> tuple[Array, ...]:
        step = (rate / (1 + count * decay)).astype(x.dtype)
        g = norm * x + g
        new = h + g * g
        return x - step * g / (jnp.sqrt(new) + epsilon), new

    return _by_kind([update(*group) for group in _groups(node, values, 3)])


@lowers("Adam", domain=DOMAIN)
def adam(node: Operator, rate: Value, count: Value, *values: Value) -> tuple[Array, ...]:
    """New values and running means of gradients and their squares (Kingma and Ba 2015), from values, gradients, means
    of gradients and means of their squares."""
    get = node.attributes.get
    alpha, beta, epsilon = get("alpha", 0.9), get("beta", 0.999), get("epsilon", 1e-6)
    norm, norm_post = get("norm_coefficient", 0.0), get("norm_coefficient_post", 0.0)

    def update(x: Array, g: Array, v: Array, h: Array) -> tuple[Array, ...]:
        t = jnp.asarray(count, x.dtype)
        # The first update (0) is not corrected; 1 stands in for its divisor.
        divisor = jnp.where(t > 0, 1 - alpha**t, 1)
        step = (rate * jnp.where(t > 0, jnp.sqrt(1 - beta**t) / divisor, 1)).astype(x.dtype)
        g = norm * x + g
        v = alpha * v + (1 - alpha) * g
        h = beta * h + (1 - beta) * g * g
        return (1 - norm_post) * (x - step * v / (jnp.sqrt(h) + epsilon)), v, h

    return _by_kind([update(*group) for group in _groups(node, values, 4)])


@lowers("Momentum", domain=DOMAIN)
def momentum(node: Operator, rate: Value, count: Value, *values: Value) -> tuple[Array, ...]:
    """New values and momenta of tensors, from values, gradients and momenta; `mode` "nesterov" looks ahead."""
    alpha, beta, norm = (needed(node, name) for name in ("alpha", "beta", "norm_coefficient"))
    mode = text(node, "mode", "standard")
    if mode not in ("standard", "nesterov"):
        raise ModelError(f"Momentum node {node.name!r} has the mode {mode!r}; it is standard or nesterov")

    def update(x: Array, g: Array, v: Array) -> tuple[Array, ...]:
        step = jnp.asarray(rate, x.dtype)
        g = norm * x + g
        v = alpha * v + jnp.where(count > 0, beta, 1).astype(x.dtype) * g
        return x - step * (g + alpha * v if mode == "nesterov" else v), v

    return _by_kind([update(*group) for group in _groups(node, values, 3)])


@lowers("Gradient", domain=DOMAIN)
def gradient(node: Operator, *values: Value, context: Context) -> tuple[Array, ...]:
    """The gradients of tensor `y` with respect to the tensors `xs`, at the operands' values for `xs` and `zs`.

    The part of the graph between them is the attribute `graph` (:func:`hpdlf.models.onnxpp.bodies.body_of` puts it
    there). Of a y with several elements the gradient is that of their sum. Works on its own results: second derivatives.
    """
    own, outer = outer_values(node, values)
    body: Body | None = node.attributes.get("graph")
    if body is None:
        raise ModelError(
            f"Gradient node {node.name!r}: its graph does not compute {text(node, 'y', '')!r} from its inputs"
        )
    count = len(node.attributes["xs"])

    def y(xs: list[Array]) -> Array:
        (result,) = run_body(body, (*xs, *own[count:]), outer, context)
        return jnp.sum(result)

    return tuple(jax.grad(y)([jnp.asarray(v) for v in own[:count]]))
