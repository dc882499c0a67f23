"""What the operators' tests share: 64-bit JAX, and running ONNX nodes as a segment."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from hpdlf.exec.operators import step_context
from hpdlf.exec.segments import build_segment
from hpdlf.models.onnxpp import Graph, Operator

# Operands that must be known before the run, by operator and position; of reductions it is the second (the axes).
STATIC_OPERANDS = {
    "ConstantOfShape": (0,), "Dropout": (1, 2), "Expand": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,),
}  # fmt: skip


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def _operator(node: onnx.NodeProto) -> Operator:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return Operator(
        name=node.name or f"{node.op_type}:{node.output[0]}",
        op_type=node.op_type,
        domain=node.domain,
        family="elementwise",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
    )


def _static_names(operators: Sequence[Operator]) -> set[str]:
    names: set[str] = set()
    for operator in operators:
        default = (1,) if operator.op_type.startswith("Reduce") else ()
        places = STATIC_OPERANDS.get(operator.op_type, default)
        names |= {operator.inputs[i] for i in places if i < len(operator.inputs)}
    return names


@pytest.fixture
def run_onnx(x64: None) -> Callable[..., list[np.ndarray]]:
    """Computes a ModelProto, or a NodeProto at an opset, as one compiled segment."""

    def run(
        model: onnx.ModelProto | onnx.NodeProto, *inputs: Any, opset: int = 20, training: bool = True
    ) -> list[np.ndarray]:
        if isinstance(model, onnx.NodeProto):
            names, results, nodes = [n for n in model.input if n], [n for n in model.output if n], [model]
        else:
            names, nodes = [i.name for i in model.graph.input], list(model.graph.node)
            results = [o.name for o in model.graph.output]
            opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        operators = tuple(_operator(n) for n in nodes)
        values = dict(zip(names, inputs, strict=True))
        known = _static_names(operators)
        if len(operators) > 1:  # the body of a function may compute shapes from its small integer operands
            small = {n for n, v in values.items() if np.ndim(v) <= 1 and np.size(v) <= 8}
            known |= {n for n in small if np.asarray(values[n]).dtype.kind == "i"}
        static = {n: np.asarray(values.pop(n)) for n in known if n in values}
        graph = Graph(
            name="test",
            opset=opset,
            operators=operators,
            tensors={},
            inputs=tuple(values),
            targets=(),
            outputs=tuple(results),
            loss=None,
            parameters=(),
            state={},
            constants=tuple(static),
        )
        segment = build_segment(graph, [o.name for o in operators], list(values), results, static, precision=None)
        context = step_context(seed=0, step=0, samples=np.arange(1), training=training)
        outputs, _ = segment.forward({}, {}, values, context)
        return [np.asarray(outputs[n]) for n in results]

    return run
