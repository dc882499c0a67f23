"""What the operators' tests share: 64-bit JAX, and onnxruntime to compare with."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import onnx
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., Any]:
    """check_gradients(function, *operands): along a random direction through all operands, the gradients of
    a randomly weighted sum of what comes out, which it returns, are the central difference; 64 bits, and one compilation."""

    def check(function: Callable[..., Any], *operands: np.ndarray) -> Any:
        def total(*given: jax.Array) -> Any:
            weights, found = np.random.default_rng(17), function(*given)
            leaves = jax.tree.leaves(found)
            return sum((leaf * weights.standard_normal(leaf.shape)).sum() for leaf in leaves), found

        run = jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(operands))), has_aux=True))
        draw, step = np.random.default_rng(18), 1e-6
        way = [draw.standard_normal(np.shape(x)) for x in operands]
        up, down = (run(*(x + s * step * w for x, w in zip(operands, way, strict=True)))[0][0] for s in (1, -1))
        (_, found), gradients = run(*operands)
        slope = sum(np.sum(np.asarray(g) * w) for g, w in zip(gradients, way, strict=True))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6, atol=1e-6)
        return found

    return check


@pytest.fixture
def like_onnxruntime() -> Callable[..., list[np.ndarray]]:
    """Runs one node by our backend and by onnxruntime, and demands equal shapes, types and values."""
    pytest.importorskip("onnxruntime")
    from onnxruntime import InferenceSession, SessionOptions

    from hpdlf.exec.backend import Backend

    def run(
        node: onnx.NodeProto,
        inputs: dict[str, np.ndarray],
        *,
        opset: int,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        domain: str = "",
        version: int = 1,
    ) -> list[np.ndarray]:
        def value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
            return onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )

        inputs = {name: np.asarray(array) for name, array in inputs.items()}
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "g", [value(n, v) for n, v in inputs.items()], results)
        opsets = [onnx.helper.make_opsetid("", opset)]
        if domain:
            opsets.append(onnx.helper.make_opsetid(domain, version))
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        wanted = InferenceSession(model.SerializeToString(), options).run(None, inputs)
        model = onnx.shape_inference.infer_shapes(model)
        for output, array in zip(model.graph.output, wanted, strict=True):
            if output.type.WhichOneof("value") is None:
                output.CopyFrom(value(output.name, array))
        got = Backend.prepare(model).run(inputs)
        for name, mine, theirs in zip([n for n in node.output if n], got, wanted, strict=True):
            assert mine.shape == theirs.shape, f"{name}: {mine.shape} is not {theirs.shape}"
            assert mine.dtype == theirs.dtype, f"{name}: {mine.dtype} is not {theirs.dtype}"
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=atol, err_msg=f"{node} {name}")
        return list(got)

    return run
