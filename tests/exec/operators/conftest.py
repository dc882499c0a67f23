"""What the operators' tests share: 64-bit JAX, and onnxruntime to compare with."""

from collections.abc import Callable, Iterator

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
