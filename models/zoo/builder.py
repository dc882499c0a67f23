"""A graph while it is put together: nodes, weights without values or with seeded ones, constants, inputs and outputs.

Without a seed a weight has a name, a type and a shape, and its values are external data of which there is no file: the
standard's own way to leave them out. So the model of a trillion parameters is as small as its graph. Whatever takes
part in the arithmetic but is not trained (a mask, sines of positions) is computed in the graph from a few numbers.

>>> b = Builder(name="tiny", seed=None)
>>> x = b.input("x", 4)
>>> with b.scope("first"):
...     y = b.dense(x, 4, 2)
>>> model = b.model(y=(y, (2,)))
>>> [w.name for w in model.graph.initializer], model.ByteSize() < 1000
(['first.weight', 'first.bias'], True)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod, sqrt
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ...errors import ModelError
from ..onnxpp.weights import TRAINED

__all__ = ["Builder", "need"]

OPSET = 24
IR_VERSION = 12
MAX_INLINE_BYTES = 2**31 - 2**24


def need(what: str, value: object, condition: bool, expected: str) -> None:
    """Raise ModelError unless `condition` holds for a hyper-parameter."""
    if not condition:
        raise ModelError(f"{what} = {value!r}: expected {expected}")


class Builder:
    """Nodes and weights of one graph: every method takes the names of the tensors that it reads and returns its result's.

    name  of the graph
    seed  of the generator that weights are drawn from; None leaves their values out
    """

    def __init__(self, *, name: str, seed: int | None = None) -> None:
        self.name, self.seed = name, seed
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self._prefix = ""
        self._taken: Counter[str] = Counter()
        self._constants: dict[tuple[object, ...], str] = {}
        self._shared: dict[str, str] = {}
        self._values_bytes = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names given meanwhile begin with `name` and a dot."""
        before = self._prefix
        self._prefix = f"{before}{name}."
        try:
            yield
        finally:
            self._prefix = before

    def shared(self, key: str, make: Callable[[], str]) -> str:
        """A tensor that all layers share, made where it is first asked for, outside of every scope."""
        if key not in self._shared:
            before, self._prefix = self._prefix, ""
            self._shared[key] = make()
            self._prefix = before
        return self._shared[key]

    def _unique(self, wanted: str) -> str:
        name = self._prefix + wanted
        self._taken[name] += 1
        count = self._taken[name]
        return name if count == 1 else self._unique(f"{wanted}_{count}")

    def input(self, name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        """An input of `shape` per sample."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, ["batch", *shape]))
        return name

    def weight(
        self,
        shape: Sequence[int],
        *,
        fan_in: int | None = None,
        value: float = 0.0,
        name: str = "weight",
        frozen: bool = False,
        said: bool = False,
    ) -> str:
        """A trained tensor: normal with variance 2 / `fan_in`, or all `value`; a `frozen` one takes part untrained.

        `said`: the file says that it is trained, and one tensor however many use it, as its use does not tell.
        """
        tensor = TensorProto(name=self._unique(name), data_type=TensorProto.FLOAT, dims=shape)
        if frozen or said:
            tensor.metadata_props.add(key=TRAINED, value="false" if frozen else "true")
        if self.seed is None:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=f"{self.name}.weights")
        else:
            self._values_bytes += 4 * prod(shape)
            if self._values_bytes > MAX_INLINE_BYTES:
                raise ModelError(f"{self.name}: its weights do not fit into the 2 GiB of one file; leave out the seed")
            if fan_in is None:
                values = np.full(tuple(shape), value, np.float32)
            else:
                values = self.rng.standard_normal(tuple(shape), dtype=np.float32) * np.float32(sqrt(2.0 / fan_in))
            tensor.raw_data = values.tobytes()
        self.weights.append(tensor)
        return str(tensor.name)

    def constant(self, value: np.ndarray | Sequence[int] | float | bool, *, frozen: bool = False) -> str:
        """A small tensor of known values, one for all who ask for the same; integers are int64, other numbers float32."""
        array = np.asarray(value)
        array = np.ascontiguousarray(array, {"i": np.int64, "b": np.bool_}.get(array.dtype.kind, np.float32))
        array = array.reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes(), frozen)
        if key not in self._constants:
            tensor = numpy_helper.from_array(array, f"constant.{len(self._constants)}")
            if frozen:
                tensor.metadata_props.add(key=TRAINED, value="false")
            self.weights.append(tensor)
            self._constants[key] = tensor.name
        return self._constants[key]

    def node(self, op_type: str, *operands: str, name: str = "", **attributes: Any) -> str:
        """One operator with one result."""
        return self.split(op_type, *operands, results=1, name=name, **attributes)[0]

    def split(self, op_type: str, *operands: str, results: int, name: str = "", **attributes: Any) -> list[str]:
        """One operator with several results."""
        own = self._unique(name or op_type.lower())
        outputs = [own] if results == 1 else [f"{own}.{i}" for i in range(results)]
        self.nodes.append(helper.make_node(op_type, operands, outputs, name=own, **attributes))
        return outputs

    def dense(self, x: str, fan_in: int, fan_out: int, *, bias: bool = True, frozen: bool = False) -> str:
        """``x @ weight + bias`` over the last axis."""
        y = self.node("MatMul", x, self.weight((fan_in, fan_out), fan_in=fan_in, frozen=frozen))
        return self.node("Add", y, self.weight((fan_out,), name="bias", frozen=frozen)) if bias else y

    def classify(self, x: str, fan_in: int, fan_out: int) -> str:
        """A dense layer of [batch, fan_in], with its weight as [fan_out, fan_in]."""
        return self.node(
            "Gemm", x, self.weight((fan_out, fan_in), fan_in=fan_in), self.weight((fan_out,), name="bias"), transB=1
        )

    def reshape(self, x: str, *shape: int) -> str:
        """A view; 0 keeps a dimension, -1 is whatever is left."""
        return self.node("Reshape", x, self.constant(shape))

    def dropout(self, x: str, rate: float) -> str:
        """Dropout in training mode; nothing at all at rate 0."""
        return self.node("Dropout", x, self.constant(rate), self.constant(True)) if rate else x

    def cross_entropy(self, scores: str, labels: str, **attributes: Any) -> str:
        """The mean cross-entropy of the softmax of [batch, classes ...]."""
        return self.node("SoftmaxCrossEntropyLoss", scores, labels, reduction="mean", **attributes)

    def model(self, **outputs: tuple[str, Sequence[int] | None]) -> ModelProto:
        """The model, whose outputs are called as told: (tensor, its shape per sample, or None for a single number)."""
        renamed = {tensor: name for name, (tensor, _) in outputs.items()}
        for node in self.nodes:
            for operands in (node.output, node.input):
                for slot, tensor in enumerate(operands):
                    if tensor in renamed:
                        operands[slot] = renamed[tensor]
        shapes = {name: [] if shape is None else ["batch", *shape] for name, (_, shape) in outputs.items()}
        graph = helper.make_graph(
            self.nodes,
            self.name,
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="hpdlf")
