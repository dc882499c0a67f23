"""What the micro-benchmarks compute: small chains of operators, as segments of training run them.

A case becomes a graph, which the executor's own lowerings compile (:func:`graph_of`). Forward and backward pass, and in
some cases the optimiser's update, are one compiled function, as on a single rank. Pictures come in and go out with
channels last, as between two convolutions of a network; the transpositions around the chain cost nothing then, and
:attr:`Bench.core` leaves them out.

>>> bench = graph_of(Case(kind="dense", sizes={"m": 8, "k": 16, "n": 4, "gemm": 1, "act": "Relu"}))
>>> [bench.graph.operator[name].op_type for name in bench.core]
['Gemm', 'Relu']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from ..models.onnxpp.count import family
from ..models.onnxpp.graph import Dim, Graph, Operator, Tensor

__all__ = ["BUILDERS", "UPSTREAM", "Bench", "Case", "graph_of"]

# The parameter behind whose view a chain stands, so that its input wants a gradient.
UPSTREAM = "before"

Sizes = Mapping[str, int | str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A chain to time.

    kind, sizes   which builder in :data:`BUILDERS`, and its arguments
    dtype         of the arithmetic
    passes        "forward", "training" (backward as well), or the name of an optimiser whose update follows at once
    """

    kind: str
    sizes: Sizes
    dtype: str = "float32"
    passes: str = "training"

    def as_dict(self) -> dict[str, Any]:
        """As plain values: its own arguments."""
        return {"kind": self.kind, "sizes": dict(self.sizes), "dtype": self.dtype, "passes": self.passes}

    @property
    def text(self) -> str:
        """For people, and to tell cases apart."""
        sizes = " ".join(f"{key}={value}" for key, value in self.sizes.items())
        return f"{self.kind} {sizes} {self.passes} {self.dtype}"


class Bench(NamedTuple):
    """A case as a graph: the operators that count, those to compile, and values of constants and of inputs besides x."""

    graph: Graph
    core: tuple[str, ...]
    compiled: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]
    differentiable: bool


def graph_of(case: Case) -> Bench:
    """The case's graph. Its sizes do not grow with the batch, which is 1."""
    return BUILDERS[case.kind](case.dtype, **case.sizes)


@dataclass(kw_only=True)
class _Sketch:
    """A chain while it is put together; `at` is the last result.

    dims          of what comes in, as ONNX counts them (channels second)
    image         it comes and goes with channels last
    differentiable   its gradient is wanted, as behind another layer
    """

    dtype: str
    dims: tuple[int, ...]
    image: bool = False
    differentiable: bool = True
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    state: dict[str, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    given: dict[str, np.ndarray] = field(default_factory=dict)
    core: list[str] = field(default_factory=list)
    at: str = "x"

    def __post_init__(self) -> None:
        shape = (self.dims[0], *self.dims[2:], self.dims[1]) if self.image else self.dims
        for name in (UPSTREAM, "x"):
            self._tensor(name, shape)
        self._operator("Identity", (UPSTREAM,), ("x",), name=UPSTREAM)
        if self.differentiable:
            self.parameters.append(UPSTREAM)
        if self.image:
            rank = len(shape)
            self.then("Transpose", self.dims, counts=False, perm=(0, rank - 1, *range(1, rank - 1)))

    def _tensor(self, name: str, dims: tuple[int, ...], dtype: str = "") -> str:
        self.tensors[name] = Tensor(name=name, dtype=dtype or self.dtype, shape=tuple(Dim(int(d)) for d in dims))
        return name

    def _operator(self, op_type: str, inputs: Any, outputs: Any, name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type}{len(self.operators)}"
        made = Operator(
            name=name,
            op_type=op_type,
            family=family(op_type),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            attributes=attributes,
        )
        self.operators.append(made)
        return name

    def shape(self, name: str = "") -> tuple[int, ...]:
        """Of a tensor; of the last result."""
        return self.tensors[name or self.at].dims(1)

    def weight(self, *dims: int) -> str:
        """A parameter."""
        self.parameters.append(self._tensor(f"weight{len(self.tensors)}", dims))
        return self.parameters[-1]

    def constant(self, value: Any, dtype: str = "") -> str:
        """A tensor known beforehand."""
        array = np.asarray(value, dtype=dtype or None)
        name = self._tensor(f"constant{len(self.tensors)}", array.shape, str(array.dtype))
        self.constants[name] = array
        return name

    def feed(self, value: np.ndarray) -> str:
        """One more input."""
        name = self._tensor(f"given{len(self.tensors)}", value.shape, str(value.dtype))
        self.given[name] = value
        return name

    def then(
        self, op_type: str, dims: tuple[int, ...], *others: str, x: str = "", counts: bool = True, **attributes: Any
    ) -> str:
        """An operator on `x` (the last result) and `others`; its result has `dims`."""
        result = self._tensor(f"t{len(self.operators)}", dims)
        name = self._operator(op_type, (x or self.at, *others), (result,), **attributes)
        if counts:
            self.core.append(name)
        self.at = result
        return result

    def activate(self, kind: str) -> None:
        """An element-wise operator of one tensor; "" for none."""
        if not kind:
            return
        limits = [self.constant(v, self.dtype) for v in (0.0, 6.0)] if kind == "Clip" else []
        self.then(kind, self.shape(), *limits)

    def normalise(self) -> None:
        """Batch normalisation in training."""
        dims, x = self.shape(), self.at
        scale = [self.weight(dims[1]) for _ in range(2)]
        running = [self._tensor(f"running{len(self.tensors)}", (dims[1],)) for _ in range(2)]
        new = [self._tensor(f"{name}_new", (dims[1],)) for name in running]
        self.state.update(zip(running, new, strict=True))
        self.at = self._tensor(f"t{len(self.operators)}", dims)
        self.core.append(
            self._operator(
                "BatchNormalization",
                (x, *scale, *running),
                (self.at, *new),
                epsilon=1e-5,
                momentum=0.9,
                training_mode=1,
            )
        )

    def done(self) -> Bench:
        """The chain as it stands."""
        dims = self.shape()
        if self.image and len(dims) == len(self.dims):
            rank = len(dims)
            self.then("Transpose", (dims[0], *dims[2:], dims[1]), counts=False, perm=(0, *range(2, rank), 1))
        graph = Graph(
            name="case",
            opset=20,
            operators=tuple(self.operators),
            tensors=self.tensors,
            inputs=() if self.differentiable else (UPSTREAM,),
            targets=(),
            outputs=(self.at,),
            loss=None,
            parameters=tuple(self.parameters),
            state=self.state,
            constants=tuple(self.constants),
        )
        compiled = tuple(o.name for o in self.operators if o.name != UPSTREAM)
        return Bench(graph, tuple(self.core), compiled, self.constants, self.given, self.differentiable)


# The chains. Sizes are as ONNX has them: n samples, c channels of h x h points, k filters of r x r.


def _product(dtype: str, m: int, n: int, k: int) -> Bench:
    s = _Sketch(dtype=dtype, dims=(m, k))
    s.then("MatMul", (m, n), s.weight(k, n))
    return s.done()


def _dense(dtype: str, m: int, k: int, n: int, gemm: int, act: str = "", layers: int = 1) -> Bench:
    """Dense layers, each but the first from n to n; `gemm`: as one operator with the weight transposed."""
    s = _Sketch(dtype=dtype, dims=(m, k))
    for _ in range(layers):
        before = s.shape()[1]
        if gemm:
            s.then("Gemm", (m, n), s.weight(n, before), s.weight(n), transB=1)
        else:
            s.then("MatMul", (m, n), s.weight(before, n))
            s.then("Add", (m, n), s.weight(n))
        s.activate(act)
    return s.done()


def _conv(
    dtype: str,
    n: int,
    h: int,
    c: int,
    k: int,
    r: int,
    stride: int = 1,
    groups: int = 1,
    norm: int = 1,
    act: str = "Relu",
    first: int = 0,
    layers: int = 1,
) -> Bench:
    """Convolutions with normalisation and activation, each but the first from k to k channels at stride 1; `first`: of a
    network, so that nobody wants the input's gradient.
    """
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True, differentiable=not first)
    for layer in range(layers):
        _, before, side, _ = s.shape()
        step, pad = stride if layer == 0 else 1, (r - 1) // 2
        out = (side + 2 * pad - r) // step + 1
        s.then(
            "Conv",
            (n, k, out, out),
            s.weight(k, before // groups, r, r),
            kernel_shape=(r, r),
            strides=(step, step),
            pads=(pad,) * 4,
            group=groups,
        )
        if norm:
            s.normalise()
        s.activate(act)
    return s.done()


def _transposed(dtype: str, n: int, h: int, c: int, k: int, r: int) -> Bench:
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True)
    s.then(
        "ConvTranspose", (n, k, r * h, r * h), s.weight(c, k, r, r), kernel_shape=(r, r), strides=(r, r), pads=(0,) * 4
    )
    s.activate("Relu")
    return s.done()


def _norm(dtype: str, n: int, h: int, c: int, norm: int, add: int, act: str) -> Bench:
    """What stands between convolutions: normalisation, a residual sum, an activation."""
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True)
    x = s.at
    if norm:
        s.normalise()
    if add:
        s.then("Add", s.shape(), x)
    s.activate(act)
    return s.done()


def _pool(dtype: str, n: int, h: int, c: int, r: int, stride: int, op: str) -> Bench:
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True)
    if op == "GlobalAveragePool":
        s.then(op, (n, c, 1, 1))
    else:
        pad = (r - 1) // 2
        out = (h + 2 * pad - r) // stride + 1
        s.then(op, (n, c, out, out), kernel_shape=(r, r), strides=(stride, stride), pads=(pad,) * 4)
    return s.done()


def _gate(dtype: str, n: int, h: int, c: int, act: str) -> Bench:
    """Channels weighted by a function of their mean, as in squeeze and excitation."""
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True)
    x = s.at
    s.then("GlobalAveragePool", (n, c, 1, 1))
    s.then("Mul", (n, c, 1, 1), s.weight(1, c, 1, 1))
    s.activate(act)
    s.then("Mul", (n, c, h, h), s.at, x=x)
    return s.done()


def _join(dtype: str, n: int, h: int, c: int) -> Bench:
    """Two pictures with their channels side by side."""
    s = _Sketch(dtype=dtype, dims=(n, c, h, h), image=True)
    x = s.at
    other = s.then("Mul", (n, c, h, h), s.weight(c, 1, 1))
    s.then("Concat", (n, 2 * c, h, h), other, x=x, axis=1)
    return s.done()


def _attend(dtype: str, n: int, heads: int, tokens: int, part: int, mask: int) -> Bench:
    """Attention of `heads`, each `part` wide, without the dense layers around it."""
    width = heads * part
    s = _Sketch(dtype=dtype, dims=(n, tokens, width))
    x, split = s.at, s.constant((n, tokens, heads, part), "int64")
    operands = []
    for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        s.then("Add", (n, tokens, width), s.weight(width), x=x)  # a dense layer's bias: three different operands
        s.then("Reshape", (n, tokens, heads, part), split)
        dims = (n, tokens, heads, part)
        operands.append(s.then("Transpose", tuple(dims[p] for p in perm), perm=perm))
    square = (n, heads, tokens, tokens)
    s.then("MatMul", square, operands[1], x=operands[0])
    s.then("Mul", square, s.constant(1 / sqrt(part), dtype))
    if mask:
        s.then("Add", square, s.constant(np.triu(np.full((tokens, tokens), -1e9), 1), dtype))
    s.then("Softmax", square, axis=-1)
    s.then("MatMul", (n, heads, tokens, part), operands[2])
    s.then("Transpose", (n, tokens, heads, part), perm=(0, 2, 1, 3))
    s.then("Reshape", (n, tokens, width), s.constant((n, tokens, width), "int64"))
    return s.done()


def _layer_norm(dtype: str, n: int, tokens: int, width: int, add: int) -> Bench:
    s = _Sketch(dtype=dtype, dims=(n, tokens, width))
    x = s.at
    s.then("LayerNormalization", s.dims, s.weight(width), s.weight(width), axis=-1, epsilon=1e-5)
    if add:
        s.then("Add", s.dims, x)
    return s.done()


def _loss(dtype: str, n: int, c: int, mean_squares: int) -> Bench:
    s = _Sketch(dtype=dtype, dims=(n, c))
    draw = np.random.default_rng(0)
    if mean_squares:
        error = s.then("Sub", (n, c), s.feed(draw.standard_normal((n, c)).astype(dtype)))
        s.then("Mul", (n, c), error)
        s.then("ReduceMean", (), keepdims=0)
    else:
        s.then("SoftmaxCrossEntropyLoss", (), s.feed(draw.integers(0, c, n)), reduction="mean")
    return s.done()


def _look_up(dtype: str, n: int, rows: int, width: int) -> Bench:
    """Rows of a table, as words are embedded."""
    s = _Sketch(dtype=dtype, dims=(n, width))
    x, indices = s.at, s.feed(np.random.default_rng(0).integers(0, rows, n))
    found = s.then("Gather", (n, width), indices, x=s.weight(rows, width), axis=0)
    s.then("Add", (n, width), found, x=x)
    return s.done()


def _update(dtype: str, elements: int, tensors: int) -> Bench:
    """Nothing but parameters, for an optimiser's update alone."""
    s = _Sketch(dtype=dtype, dims=(1, 1))
    for _ in range(tensors):
        s.weight(max(elements // tensors, 1))
    return s.done()


BUILDERS: Mapping[str, Callable[..., Bench]] = {
    "product": _product,
    "dense": _dense,
    "conv": _conv,
    "transposed": _transposed,
    "norm": _norm,
    "pool": _pool,
    "gate": _gate,
    "join": _join,
    "attend": _attend,
    "layer_norm": _layer_norm,
    "loss": _loss,
    "look_up": _look_up,
    "update": _update,
}
