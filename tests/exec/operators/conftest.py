"""What the operators' tests share: 64-bit JAX, and running one ONNX node."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from hpdlf.exec.operators import Context, lowering, step_context
from hpdlf.models.onnxpp.graph import Operator

# Inputs that must be known before the run, by operator and position. Reductions' axes are the second input of all of them.
STATIC_INPUTS = {
    "Clip": (), "ConstantOfShape": (0,), "Dropout": (1, 2), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,),
}  # fmt: skip


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def operator_of(node: onnx.NodeProto) -> Operator:
    """An ONNX node as the graph holds it."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    attributes = {n: onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for n, v in attributes.items()}
    return Operator(
        name=node.name or node.output[0],
        op_type=node.op_type,
        domain=node.domain,
        family="elementwise",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
    )


def run_graph(model: onnx.ModelProto, inputs: Sequence[Any], context: Context) -> list[np.ndarray]:
    """A model's outputs, every operator compiled, its static operands given as such."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    values: dict[str, Any] = dict(zip([i.name for i in model.graph.input], inputs, strict=True))
    for initializer in model.graph.initializer:
        values[initializer.name] = onnx.numpy_helper.to_array(initializer)
    for proto in model.graph.node:
        node = operator_of(proto)
        function = lowering(node, opset)
        default = (1,) if node.op_type.startswith("Reduce") else ()
        places = STATIC_INPUTS.get(node.op_type, default)
        operands = [np.asarray(values[n]) if n else None for n in node.inputs]
        data = {i: v for i, v in enumerate(operands) if v is not None and i not in places}

        def computed(data: dict[int, Any], node: Operator = node, function: Any = function, operands: Any = operands) -> Any:
            given = [data.get(i, v) for i, v in enumerate(operands)]
            return function(node, *given, context=context.at(node, 0))

        values.update(zip(node.outputs, jax.jit(computed)(data), strict=False))
    return [np.asarray(values[o.name]) for o in model.graph.output]


@pytest.fixture
def run_onnx(x64: None) -> Callable[..., list[np.ndarray]]:
    """Runs a ModelProto, or a NodeProto at an opset."""

    def run(model: onnx.ModelProto | onnx.NodeProto, *inputs: Any, opset: int = 20, training: bool = True) -> list[np.ndarray]:
        if isinstance(model, onnx.NodeProto):
            infos = [onnx.ValueInfoProto(name=n) for n in model.input if n]
            outputs = [onnx.ValueInfoProto(name=n) for n in model.output if n]
            graph = onnx.helper.make_graph([model], "one", infos, outputs)
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        context = step_context(seed=0, step=0, samples=np.arange(inputs[0].shape[0] if np.ndim(inputs[0]) else 1))
        return run_graph(model, inputs, context if training else jax.tree.map(lambda v: v, context).__class__(
            key=context.key, samples=context.samples, training=False))

    return run
