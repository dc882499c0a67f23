"""Small networks as exporters write them (the parts of ConvNeXt, Swin, T5, Llama and a recurrent recogniser), and what it
means that a graph learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.exec.operators import step_context
from hpdlf.exec.segments import Segment, build_segment
from hpdlf.models.onnxpp import Graph, Onnxpp, load_values

Arrays = Mapping[str, jax.Array]
# Up to so many parameters a needless backward pass takes less time than compiling the forward pass alone.
SMALL = 100_000


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The loss of one batch as a function of the parameters, everything in 64 bits."""

    graph: Graph
    segment: Segment
    parameters: Arrays
    state: Arrays
    data: Arrays
    context: Any

    @classmethod
    def of(cls, model: Onnxpp, *, batch: int, below: Mapping[str, int], ones: tuple[str, ...] = ()) -> Learner:
        """Data are normal or uniform integers, less than `below` says (default 10), labels less than there are classes,
        or one where the input is named in `ones`."""
        graph = model.graph
        assert graph.loss is not None
        values = load_values(model, [*graph.parameters, *graph.state, *graph.constants])
        losses = [o for o in graph.operators if o.op_type == "SoftmaxCrossEntropyLoss"]
        classes = graph.tensors[losses[0].inputs[0]].shape[1].fixed if losses else 2
        rng = np.random.default_rng(0)
        data: dict[str, jax.Array] = {}
        for name in (*graph.inputs, *graph.targets):
            dims, dtype = graph.tensors[name].dims(batch), graph.tensors[name].dtype
            if graph.tensors[name].is_float:
                value = rng.random(dims) if name in graph.targets else rng.standard_normal(dims)
                data[name] = jnp.asarray(value)
            else:
                high = below.get(name, classes if name in graph.targets else 10)
                drawn = np.ones(dims) if name in ones else rng.integers(0, high, dims)
                data[name] = jnp.asarray(np.full(dims, high) if not dims else drawn, dtype)
        return cls(
            graph=graph,
            segment=build_segment(
                graph,
                list(_needed(graph)),
                [*graph.inputs, *graph.targets],
                [graph.loss],
                {name: values[name] for name in graph.constants},
                "float64",
            ),
            parameters={n: jnp.asarray(values[n], jnp.float64) for n in graph.parameters},
            state={n: jnp.asarray(values[n], jnp.float64) for n in graph.state},
            data=data,
            context=step_context(seed=1, step=5, samples=np.arange(batch) + 10),
        )

    @property
    def _sizes(self) -> Mapping[str, float]:
        """How large a parameter's values are."""
        return {n: max(float(jnp.sqrt(jnp.mean(p * p))), 1e-2) for n, p in self.parameters.items()}

    def loss(self, parameters: Arrays) -> float:
        """The loss of `parameters`."""
        if self.graph.parameter_count < SMALL:
            return self._both(parameters)[0]
        outputs, _ = self.segment.forward(parameters, self.state, self.data, self.context)
        return float(outputs[self.graph.loss or ""])

    def gradients(self, parameters: Arrays) -> Arrays:
        """The loss's gradients at `parameters`."""
        return self._both(parameters)[1]

    def _both(self, parameters: Arrays) -> tuple[float, Arrays]:
        name = self.graph.loss or ""
        given = parameters, self.state, self.data, self.context
        outputs, _, gradients, _ = self.segment.forward_backward(*given, {name: 1.0})
        return float(outputs[name]), gradients

    def worst_disagreement(self, directions: int = 2) -> float:
        """The largest relative difference of gradient and central difference along random directions.

        A step is short, so that few maxima change sides within it; of four step lengths the best counts, as rounding
        spoils the shortest and curvature the longest.
        """
        # Zero biases put whole channels exactly on a corner of a Relu, where there is no gradient: off it.
        rng = np.random.default_rng(99)
        here = {n: p + 1e-2 * self._sizes[n] * rng.standard_normal(p.shape) for n, p in self.parameters.items()}
        gradients, worst = self.gradients(here), 0.0
        for seed in range(directions):
            rng = np.random.default_rng(100 + seed)
            towards = {n: self._sizes[n] * rng.standard_normal(p.shape) for n, p in self.parameters.items()}
            slope = sum(float(jnp.vdot(gradients[n], towards[n])) for n in towards)
            # Large contributions may cancel out: what is left is compared with how large they are.
            usual = sum(float(jnp.sum(jnp.square(gradients[n] * towards[n]))) for n in towards) ** 0.5
            best = np.inf
            for step in (1e-8, 1e-7, 1e-9, 1e-6):
                ahead, behind = (self.loss({n: p + s * towards[n] for n, p in here.items()}) for s in (step, -step))
                best = min(best, abs((ahead - behind) / (2 * step) - slope) / max(abs(slope), usual, 1e-12))
                if best < 1e-6:
                    break
            worst = max(worst, best)
        return worst

    def after(self, steps: int, optimizer: optax.GradientTransformation) -> float:
        """The loss after so many updates on the same batch."""
        parameters: Any = dict(self.parameters)
        moments = optimizer.init(parameters)
        for _ in range(steps):
            updates, moments = optimizer.update(dict(self.gradients(parameters)), moments, parameters)
            parameters = optax.apply_updates(parameters, updates)
        return self.loss(parameters)


def _needed(graph: Graph) -> dict[str, None]:
    """The operators that the loss depends on."""
    names, waiting = {}, [graph.loss or ""]
    while waiting:
        operator = graph.producer.get(waiting.pop())
        if operator is not None and operator.name not in names:
            names[operator.name] = None
            waiting.extend(name for name in operator.inputs if name)
    return names


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """64-bit types for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def learner() -> Callable[..., Learner]:
    """``learner(model, batch=2)``: see :class:`Learner`."""

    def make(
        model: Onnxpp, *, batch: int = 2, below: Mapping[str, int] | None = None, ones: tuple[str, ...] = ()
    ) -> Learner:
        return Learner.of(model, batch=batch, below=below or {}, ones=ones)

    return make


@pytest.fixture
def write_network(tmp_path: Path) -> Callable[[str], Path]:
    """``write_network("swin")``: the file of one of the small networks below."""

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(NETWORKS[name](), path)
        return path

    return write


class Writer:
    """Nodes and weights in the order in which they are asked for."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def __call__(self, op_type: str, *operands: str | np.ndarray, outputs: int = 1, **attributes: Any) -> Any:
        """One node; arrays become constants. Returns its result's name, or names."""
        names = [self.constant(v) if isinstance(v, np.ndarray | np.generic) else v for v in operands]
        made = [f"{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, names, made, name=made[0], **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any, name: str = "constant") -> str:
        name = f"{name}_{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, scale: float = 0.3) -> str:
        return self.constant((scale * self.rng.standard_normal(shape)).astype(np.float32), "weight")

    def full(self, value: float, *shape: int) -> str:
        return self.constant(np.full(shape, value, np.float32), "weight")

    def ints(self, *values: int) -> np.ndarray:
        return np.asarray(values, np.int64)

    def dense(self, x: str, rows: int, columns: int, *, bias: bool = True) -> str:
        y = self("MatMul", x, self.weight(rows, columns))
        return self("Add", y, self.weight(columns)) if bias else y

    def layer_norm(self, x: str, width: int) -> str:
        return self("LayerNormalization", x, self.full(1, width), self.full(0, width), axis=-1, epsilon=1e-6)

    def rms_norm(self, x: str, width: int) -> str:
        """Spelt out, as before operator set 23."""
        square = self("ReduceMean", self("Pow", x, np.float32(2)), self.ints(-1), keepdims=1)
        root = self("Sqrt", self("Add", square, np.float32(1e-6)))
        return self("Mul", self.weight(width, scale=1), self("Mul", x, self("Div", np.float32(1), root)))

    def heads(self, x: str, tokens: int, heads: int, size: int) -> str:
        return self("Transpose", self("Reshape", x, self.ints(0, tokens, heads, size)), perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, *, added: str | None, tokens: int, width: int, size: int) -> str:
        scores = self("MatMul", q, self("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self("Mul", scores, np.float32(size**-0.5))
        scores = self("Add", scores, added) if added else scores
        mixed = self("MatMul", self("Softmax", scores, axis=-1), v)
        return self("Reshape", self("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(-1, tokens, width))

    def model(self, output: str, opset: int, **inputs: tuple[int, list[Any]]) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["y"], name="result")],
            "network",
            [helper.make_tensor_value_info(n, kind, dims) for n, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def convnext() -> onnx.ModelProto:
    """A stem in patches, a block of depthwise convolution with layer scale, a downsampling layer."""
    w = Writer()

    def norm(x: str, width: int) -> str:
        return w("Transpose", w.layer_norm(w("Transpose", x, perm=[0, 2, 3, 1]), width), perm=[0, 3, 1, 2])

    def block(x: str, width: int) -> str:
        y = w("Conv", x, w.weight(width, 1, 7, 7, scale=0.1), w.weight(width), pads=[3, 3, 3, 3], group=width)
        y = w.layer_norm(w("Transpose", y, perm=[0, 2, 3, 1]), width)
        y = w.dense(w("Gelu", w.dense(y, width, 4 * width)), 4 * width, width)
        y = w("Mul", w.full(0.5, width), y)
        return w("Add", x, w("Transpose", y, perm=[0, 3, 1, 2]))

    x = norm(w("Conv", "x", w.weight(6, 3, 4, 4), w.weight(6), strides=[4, 4]), 6)
    x = block(x, 6)
    x = w("Conv", norm(x, 6), w.weight(8, 6, 2, 2), w.weight(8), strides=[2, 2])
    x = w("Flatten", w("GlobalAveragePool", x), axis=1)
    y = w("Gemm", w.layer_norm(x, 8), w.weight(5, 8), w.weight(5), transB=1)
    return w.model(y, 20, x=(TensorProto.FLOAT, ["N", 3, 16, 16]))


def swin() -> onnx.ModelProto:
    """Attention in shifted windows, with a table of relative positions and a mask; patches merged by strided slices."""
    w = Writer()
    side, window, width, heads = 4, 2, 8, 2
    count, tokens, size = (side // window) ** 2, window * window, width // heads
    at = np.stack(np.meshgrid(range(window), range(window), indexing="ij")).reshape(2, -1)
    away = (at[:, :, None] - at[:, None]).transpose(1, 2, 0) + window - 1
    index = (away[..., 0] * (2 * window - 1) + away[..., 1]).reshape(-1).astype(np.int64)
    mask = np.where(np.arange(count)[:, None, None, None] % 2 * np.eye(tokens) > 0, -100, 0).astype(np.float32)

    def roll(x: str, shift: int, axis: int) -> str:
        ends = (w.ints(shift), w.ints(side), w.ints(axis)), (w.ints(0), w.ints(shift), w.ints(axis))
        return w("Concat", *(w("Slice", x, *end) for end in ends), axis=axis)

    x = w("Conv", "x", w.weight(width, 3, 2, 2), w.weight(width), strides=[2, 2])
    x = w("Transpose", x, perm=[0, 2, 3, 1])
    shortcut = x
    y = roll(roll(w.layer_norm(x, width), 1, 1), 1, 2)
    y = w("Reshape", y, w.ints(-1, side // window, window, side // window, window, width))
    y = w("Reshape", w("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), w.ints(-1, tokens, width))
    qkv = w("Reshape", w.dense(y, width, 3 * width), w.ints(-1, tokens, 3, heads, size))
    qkv = w("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (w("Gather", qkv, np.int64(i), axis=0) for i in range(3))
    scores = w("MatMul", w("Mul", q, np.float32(size**-0.5)), w("Transpose", k, perm=[0, 1, 3, 2]))
    bias = w("Reshape", w("Gather", w.weight((2 * window - 1) ** 2, heads), index), w.ints(tokens, tokens, heads))
    scores = w("Add", scores, w("Unsqueeze", w("Transpose", bias, perm=[2, 0, 1]), w.ints(0)))
    scores = w("Reshape", scores, w.ints(-1, count, heads, tokens, tokens))
    scores = w("Reshape", w("Add", scores, mask), w.ints(-1, heads, tokens, tokens))
    y = w("Transpose", w("MatMul", w("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = w.dense(w("Reshape", y, w.ints(-1, tokens, width)), width, width)
    y = w("Reshape", y, w.ints(-1, side // window, side // window, window, window, width))
    y = w("Reshape", w("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), w.ints(-1, side, side, width))
    x = w("Add", shortcut, roll(roll(y, side - 1, 1), side - 1, 2))
    y = w.dense(w.layer_norm(x, width), width, 2 * width)
    erf = w("Erf", w("Div", y, np.float32(2**0.5)))
    y = w("Mul", w("Mul", y, w("Add", erf, np.float32(1))), np.float32(0.5))
    x = w("Add", x, w.dense(y, 2 * width, width))
    starts = [(0, 0), (1, 0), (0, 1), (1, 1)]
    parts = [w("Slice", x, w.ints(*s), w.ints(side, side), w.ints(1, 2), w.ints(2, 2)) for s in starts]
    x = w.dense(w.layer_norm(w("Concat", *parts, axis=-1), 4 * width), 4 * width, width, bias=False)
    x = w("ReduceMean", x, w.ints(1, 2), keepdims=0)
    return w.model(w.dense(x, width, 5), 18, x=(TensorProto.FLOAT, ["N", 3, 8, 8]))


def t5() -> onnx.ModelProto:
    """Encoder and decoder with relative positions in buckets, a decoder that looks at the encoder, one table for all."""
    w = Writer()
    tokens, width, heads, vocabulary, buckets = 6, 8, 2, 11, 4
    size = width // heads
    table = w.weight(vocabulary, width, scale=1)

    def near(*, both: bool) -> str:
        """Buckets by the logarithm of the distance, from integers alone."""
        places = w("Range", np.int64(0), np.int64(tokens), np.int64(1))
        away = w("Sub", w("Unsqueeze", places, w.ints(0)), w("Unsqueeze", places, w.ints(1)))
        far = w("Abs", away) if both else w("Neg", w("Min", away, np.int64(0)))
        scaled = w("Mul", w("Log", w("Add", w("Cast", far, to=1), np.float32(1))), np.float32(1.5))
        late = w("Min", w("Cast", scaled, to=TensorProto.INT64), np.int64(buckets - 1))
        bucket = w("Where", w("Less", far, np.int64(2)), far, late)
        bias = w("Gather", w.weight(buckets, heads), bucket)
        return w("Unsqueeze", w("Transpose", bias, perm=[2, 0, 1]), w.ints(0))

    def attention(x: str, memory: str, added: str | None) -> str:
        q, k, v = (w.heads(w.dense(y, width, width, bias=False), tokens, heads, size) for y in (x, memory, memory))
        mixed = w.attend(q, k, v, added=added, tokens=tokens, width=width, size=1)
        return w.dense(mixed, width, width, bias=False)

    def feed(x: str) -> str:
        y = w("Relu", w.dense(w.rms_norm(x, width), width, 2 * width, bias=False))
        return w("Add", x, w.dense(y, 2 * width, width, bias=False))

    x = w("Gather", table, "input_ids")
    normal = w.rms_norm(x, width)
    x = feed(w("Add", x, attention(normal, normal, near(both=True))))
    memory = w.rms_norm(x, width)
    y = w("Gather", table, "decoder_input_ids")
    causal = np.triu(np.full((tokens, tokens), -1e9, np.float32), 1)[None, None]
    normal = w.rms_norm(y, width)
    y = w("Add", y, attention(normal, normal, w("Add", near(both=False), causal)))
    y = feed(w("Add", y, attention(w.rms_norm(y, width), memory, None)))
    y = w("Mul", w.rms_norm(y, width), np.float32(width**-0.5))
    scores = w("MatMul", y, w("Transpose", table, perm=[1, 0]))
    ids = (TensorProto.INT64, ["N", tokens])
    return w.model(scores, 18, input_ids=ids, decoder_input_ids=ids)


def llama() -> onnx.ModelProto:
    """Rotary positions from inverse frequencies, keys shared by groups of heads, gated perceptrons, RMS norms spelt out."""
    w = Writer()
    tokens, width, heads, groups, vocabulary = 6, 16, 4, 2, 13
    size = width // heads
    x = w("Gather", w.weight(vocabulary, width, scale=1), "input_ids")
    places = w("Cast", w("Unsqueeze", "position_ids", w.ints(1)), to=1)
    count = w("Shape", "position_ids", start=0, end=1)
    inverse = w.constant((10000.0 ** -(np.arange(0, size, 2) / size)).astype(np.float32)[None, :, None], "inv_freq")
    repeated = w("Expand", inverse, w("Concat", count, w.ints(1, 1), axis=0))
    angles = w("Transpose", w("MatMul", repeated, places), perm=[0, 2, 1])
    angles = w("Concat", angles, angles, axis=-1)
    cosines, sines = (w("Unsqueeze", w(f, angles), w.ints(1)) for f in ("Cos", "Sin"))
    lower = w("Trilu", np.ones((tokens, tokens), np.float32), upper=0)
    mask = w("Where", w("Cast", lower, to=TensorProto.BOOL), np.float32(0), np.float32(-3e38))

    def turned(y: str) -> str:
        first = w("Slice", y, w.ints(0), w.ints(size // 2), w.ints(3))
        second = w("Slice", y, w.ints(size // 2), w.ints(1 << 60), w.ints(3))
        half = w("Concat", w("Neg", second), first, axis=-1)
        return w("Add", w("Mul", y, cosines), w("Mul", half, sines))

    def shared(y: str) -> str:
        y = w("Expand", w("Unsqueeze", y, w.ints(2)), w.ints(1, groups, heads // groups, tokens, size))
        return w("Reshape", y, w.ints(-1, heads, tokens, size))

    for _ in range(2):
        normal = w.rms_norm(x, width)
        q = turned(w.heads(w.dense(normal, width, width, bias=False), tokens, heads, size))
        k, v = (w.heads(w.dense(normal, width, groups * size, bias=False), tokens, groups, size) for _ in range(2))
        y = w.attend(q, shared(turned(k)), shared(v), added=mask, tokens=tokens, width=width, size=size)
        x = w("Add", x, w.dense(y, width, width, bias=False))
        normal = w.rms_norm(x, width)
        gate = w.dense(normal, width, 2 * width, bias=False)
        gated = w("Mul", w("Mul", gate, w("Sigmoid", gate)), w.dense(normal, width, 2 * width, bias=False))
        x = w("Add", x, w.dense(gated, 2 * width, width, bias=False))
    ids = (TensorProto.INT64, ["N", tokens])
    return w.model(w.dense(w.rms_norm(x, width), width, vocabulary, bias=False), 18, input_ids=ids, position_ids=ids)


def recogniser() -> onnx.ModelProto:
    """A convolution, a bidirectional LSTM over its columns, a GRU, classes per column: [columns, batch, classes]."""
    w = Writer()
    hidden = 5
    x = w("Conv", "x", w.weight(4, 1, 3, 3), w.weight(4), pads=[1, 1, 1, 1])
    x = w("BatchNormalization", x, w.full(1, 4), w.full(0, 4), w.full(0, 4), w.full(1, 4))
    x = w("MaxPool", w("Relu", x), kernel_shape=[4, 1], strides=[4, 1])
    x = w("Transpose", w("Squeeze", x, w.ints(2)), perm=[2, 0, 1])
    given = w.weight(2, 4 * hidden, 4), w.weight(2, 4 * hidden, hidden), w.weight(2, 8 * hidden)
    y, _, _ = w("LSTM", x, *given, outputs=3, hidden_size=hidden, direction="bidirectional")
    y = w("Reshape", w("Transpose", y, perm=[0, 2, 1, 3]), w.ints(0, -1, 2 * hidden))
    given = w.weight(1, 3 * hidden, 2 * hidden), w.weight(1, 3 * hidden, hidden), w.weight(1, 6 * hidden)
    y, _ = w("GRU", y, *given, outputs=2, hidden_size=hidden, linear_before_reset=1)
    y = w("Squeeze", y, w.ints(1))
    return w.model(w("Softmax", w.dense(y, hidden, 7), axis=2), 18, x=(TensorProto.FLOAT, ["N", 1, 4, 6]))


def scanned() -> onnx.ModelProto:
    """A recurrent cell spelt out in the body of a Scan, whose weights belong to the graph around it."""
    w = Writer()
    size = 5
    inner, recurrent, bias = w.weight(4, size), w.weight(size, size), w.weight(size)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["column", inner], ["a"]),
            helper.make_node("MatMul", ["state", recurrent], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("MatMul", ["c", recurrent], ["c2"]),
            helper.make_node("Add", ["c2", bias], ["d"]),
            helper.make_node("Tanh", ["d"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "cell",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("state", "column")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("next", "out")],
    )
    zeros = w("ConstantOfShape", w("Concat", w("Shape", "x", start=0, end=1), w.ints(size), axis=0))
    _, y = w("Scan", zeros, "x", outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])
    return w.model(w.dense(y, size, 3), 18, x=(TensorProto.FLOAT, ["N", 6, 4]))


def quantised() -> onnx.ModelProto:
    """Products of eight-bit numbers, each result rounded again: nothing that a gradient could pass."""
    w = Writer()
    x = "x"
    for _ in range(2):
        x = w("DequantizeLinear", w("QuantizeLinear", x, np.float32(0.1), np.int8(0)), np.float32(0.1), np.int8(0))
        eight = w.constant(w.rng.integers(-127, 127, (4, 4)).astype(np.int8), "weight")
        x = w("Add", w("MatMul", x, w("DequantizeLinear", eight, np.float32(0.01))), w.weight(4))
    x = w("DequantizeLinear", w("QuantizeLinear", x, np.float32(0.1), np.int8(0)), np.float32(0.1), np.int8(0))
    return w.model(x, 18, x=(TensorProto.FLOAT, ["N", 4]))


NETWORKS = {f.__name__: f for f in (convnext, swin, t5, llama, recogniser, scanned, quantised)}
