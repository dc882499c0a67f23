"""Recurrent networks of one layer: RNN, LSTM and GRU in all their variants.

What comes from the inputs is one matrix product over all time steps; the recurrence itself is a scan. Gates and
equations are those of the standard (https://onnx.ai/onnx/operators/onnx__LSTM.html and its siblings). Shapes below: T
time steps, N samples, I inputs, H hidden units, D directions (2 if bidirectional), G gates (1, 4, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, text

__all__ = ["gru", "lstm", "rnn"]

Activation = Callable[[Array], Array]
State = tuple[Array, ...]

# By name in lower case: the function of x, alpha and beta, and the defaults of those that it takes.
ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a: jnp.where(x >= 0, x, a * jnp.expm1(jnp.minimum(x, 0))), (1.0,)),
    "hardsigmoid": (lambda x, a, b: jnp.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a: jnp.where(x >= 0, x, a * x), (0.01,)),
    "relu": (lambda x: jnp.maximum(x, 0), ()),
    "scaledtanh": (lambda x, a, b: a * jnp.tanh(b * x), (1.0, 1.0)),
    "sigmoid": (jax.nn.sigmoid, ()),
    "softplus": (jax.nn.softplus, ()),
    "softsign": (lambda x: x / (1 + jnp.abs(x)), ()),
    "tanh": (jnp.tanh, ()),
    "thresholdedrelu": (lambda x, a: jnp.where(x >= a, x, 0), (1.0,)),
}


class _Direction(NamedTuple):
    """One direction's weights and what goes with them: w (G H, I), r (G H, H), biases wb and rb (G H,)."""

    w: Array
    r: Array
    wb: Array
    rb: Array
    act: Sequence[Activation]
    peepholes: Array | None
    backward: bool


@lowers("RNN")
def rnn(
    node: Operator,
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    lengths: Value | None = None,
    h: Value | None = None,
) -> tuple[Array, ...]:
    """h' = f(x Wᵀ + h Rᵀ + b). x (T, N, I) -> all h (T, D, N, H), the last (D, N, H); `layout` 1: N before T and D."""

    def step(d: _Direction, given: Array, state: State) -> State:
        (h,) = state
        return (d.act[0](given + h @ d.r.T + d.rb),)

    return _recurrent(node, step, x, w, r, b, lengths, (h,), 1, ("Tanh",))


@lowers("LSTM")
def lstm(
    node: Operator,
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    lengths: Value | None = None,
    h: Value | None = None,
    c: Value | None = None,
    p: Value | None = None,
) -> tuple[Array, ...]:
    """Long short-term memory (Hochreiter and Schmidhuber 1997), gates in the order i, o, f, c; peepholes i, o, f.

    x (T, N, I) -> all h (T, D, N, H), the last h and c (D, N, H); `layout` 1: N before T and D.
    """
    coupled = bool(node.attributes.get("input_forget", 0))

    def step(d: _Direction, given: Array, state: State) -> State:
        h, c = state
        # The peephole of o sees the new cell.
        i, o, f, g = jnp.split(given + h @ d.r.T + d.rb, 4, axis=-1)
        pi, po, pf = (0, 0, 0) if d.peepholes is None else jnp.split(d.peepholes, 3)
        i = d.act[0](i + pi * c)
        f = 1 - i if coupled else d.act[0](f + pf * c)
        new = f * c + i * d.act[1](g)
        o = d.act[0](o + po * new)
        return o * d.act[2](new), new

    return _recurrent(node, step, x, w, r, b, lengths, (h, c), 4, ("Sigmoid", "Tanh", "Tanh"), p)


@lowers("GRU")
def gru(
    node: Operator,
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    lengths: Value | None = None,
    h: Value | None = None,
) -> tuple[Array, ...]:
    """Gated recurrent unit (Cho et al. 2014), gates in the order z, r, h; `linear_before_reset` is cuDNN's variant.

    x (T, N, I) -> all h (T, D, N, H), the last (D, N, H); `layout` 1: N before T and D.
    """
    after = bool(node.attributes.get("linear_before_reset", 0))

    def step(d: _Direction, given: Array, state: State) -> State:
        (h,) = state
        size = h.shape[-1]
        if after:
            zr, new = jnp.split(h @ d.r.T + d.rb, [2 * size], axis=-1)
            z, reset = jnp.split(d.act[0](given[..., : 2 * size] + zr), 2, axis=-1)
            new = d.act[1](given[..., 2 * size :] + reset * new)
        else:
            z, reset = jnp.split(
                d.act[0](given[..., : 2 * size] + h @ d.r[: 2 * size].T + d.rb[: 2 * size]), 2, axis=-1
            )
            new = d.act[1](given[..., 2 * size :] + (reset * h) @ d.r[2 * size :].T + d.rb[2 * size :])
        return ((1 - z) * new + z * h,)

    return _recurrent(node, step, x, w, r, b, lengths, (h,), 3, ("Sigmoid", "Tanh"))


def _recurrent(
    node: Operator,
    step: Callable[[_Direction, Array, State], State],
    x: Value,
    w: Value,
    r: Value,
    b: Value | None,
    lengths: Value | None,
    initial: Sequence[Value | None],
    gates: int,
    defaults: tuple[str, ...],
    peepholes: Value | None = None,
) -> tuple[Array, ...]:
    """All hidden states and the last states, of every direction."""
    batch_first = bool(node.attributes.get("layout", 0))
    x, w, r = jnp.asarray(x), jnp.asarray(w), jnp.asarray(r)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    directions, hidden, samples = r.shape[0], r.shape[-1], x.shape[1]
    direction = text(node, "direction", "forward")
    if directions != (2 if direction == "bidirectional" else 1) or w.shape[1] != gates * hidden:
        raise ModelError(
            f"{node.op_type} node {node.name!r} is {direction} with {hidden} units, but its weights are {w.shape} and "
            f"{r.shape}: they must have {2 if direction == 'bidirectional' else 1} direction(s) of {gates} gates"
        )
    activations = _activations(node, directions, defaults)
    bias = jnp.zeros((directions, 2 * gates * hidden), x.dtype) if b is None else jnp.asarray(b)
    zeros = jnp.zeros((directions, samples, hidden), x.dtype)
    states = [zeros if s is None else jnp.asarray(s) for s in initial]
    states = [jnp.swapaxes(s, 0, 1) if batch_first and s is not zeros else s for s in states]
    outputs = []
    for d in range(directions):
        one = _Direction(
            w=w[d],
            r=r[d],
            wb=bias[d, : gates * hidden],
            rb=bias[d, gates * hidden :],
            act=activations[d],
            peepholes=None if peepholes is None else jnp.asarray(peepholes)[d],
            backward=d == 1 or direction == "reverse",
        )
        outputs.append(_run(partial(step, one), one, x, lengths, tuple(s[d] for s in states)))
    every = jnp.stack([o for o, _ in outputs], axis=1)
    last = [jnp.stack(parts) for parts in zip(*(s for _, s in outputs), strict=True)]
    if batch_first:
        return (jnp.transpose(every, (2, 0, 1, 3)), *(jnp.swapaxes(s, 0, 1) for s in last))
    return (every, *last)


def _run(
    step: Callable[[Array, State], State], one: _Direction, x: Array, lengths: Value | None, state: State
) -> tuple[Array, State]:
    """(h of every step, the last state) of one direction. Steps behind a sample's end keep its state and give 0, so
    that going backward starts at its last."""
    steps = x.shape[0]
    given = x @ one.w.T + one.wb
    if lengths is None or (isinstance(lengths, np.ndarray) and (lengths >= steps).all()):
        last, every = lax.scan(lambda s, g: ((new := step(g, s)), new[0]), state, given, reverse=one.backward)
        return every, last
    inside = jnp.arange(steps)[:, None, None] < jnp.asarray(lengths)[None, :, None]

    def masked(s: State, row: tuple[Array, Array]) -> tuple[State, Array]:
        g, valid = row
        new = step(g, s)
        kept = tuple(jnp.where(valid, a, b) for a, b in zip(new, s, strict=True))
        return kept, jnp.where(valid, new[0], 0)

    last, every = lax.scan(masked, state, (given, inside), reverse=one.backward)
    return every, last


def _clip(node: Operator) -> float | None:
    clip = node.attributes.get("clip")
    return None if clip is None else float(clip)


def _activations(node: Operator, directions: int, defaults: tuple[str, ...]) -> list[list[Activation]]:
    """The activation functions of each direction. Values of alpha and beta go, in order, to the functions that take
    them. What gates are computed from is clipped first; the cell itself, which the third function of an LSTM is given,
    is not, as in onnxruntime."""
    given = node.attributes.get("activations") or defaults * directions
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in given]
    if len(names) < len(defaults) * directions:
        raise ModelError(
            f"{node.op_type} node {node.name!r} has {len(names)} activations; {directions} direction(s) need "
            f"{len(defaults) * directions}"
        )
    alphas, betas = (iter(node.attributes.get(f"activation_{which}") or ()) for which in ("alpha", "beta"))
    functions: list[Activation] = []
    for place, name in enumerate(names[: len(defaults) * directions]):
        if name.lower() not in ACTIVATIONS:
            raise ModelError(
                f"{node.op_type} node {node.name!r} has the activation {name!r}; the standard knows "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )
        function, values = ACTIVATIONS[name.lower()]
        constants = [float(next(source, value)) for source, value in zip((alphas, betas), values, strict=False)]
        functions.append(
            partial(_activated, function, constants, None if place % 3 == 2 and len(defaults) == 3 else _clip(node))
        )
    return [functions[i : i + len(defaults)] for i in range(0, len(functions), len(defaults))]


def _activated(function: Callable[..., Array], constants: Sequence[float], clip: float | None, x: Array) -> Array:
    return function(x if clip is None else jnp.clip(x, -clip, clip), *constants).astype(x.dtype)
