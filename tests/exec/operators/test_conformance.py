"""The ONNX standard's own backend tests, for every operator that is registered."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.case import node as node_cases

from hpdlf.exec.operators import registered

# Where the standard keeps the tests of an operator, if not in a module of its lower-case name.
MODULES = {"BatchNormalization": "batch_normalization", "SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss"}
SAMPLE = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Dropout", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "MatMul", "MaxPool", "Relu", "Reshape", "Softmax", "SoftmaxCrossEntropyLoss", "Transpose",
)  # fmt: skip
# Cases outside what a training run computes with, each with its reason.
LEFT_OUT = {
    "string": "tensors of strings",
    "sequence": "sequences and optionals",
    "optional": "sequences and optionals",
    "INT4": "packed integers",
    "INT2": "packed integers",
    "FLOAT4": "packed floats",
    "FLOAT8": "conversions that saturate",
    "FP8": "conversions that saturate",
    "E8M0": "conversions that saturate",
    "training_dropout": "masks of NumPy's generator",
    "bf16_expanded": "rounding of intermediate results to 8 bits, which XLA keeps wider",
}


def _left_out(case: Any) -> bool:
    strings = any(getattr(getattr(v, "dtype", None), "kind", "") in "OUS" for v in case.data_sets[0][0])
    return strings or any(word.lower() in case.name.lower() for word in LEFT_OUT)


def _relevant(case: Any) -> bool:
    known = registered()
    runs = all(n.domain in ("", "ai.onnx") and n.op_type in known for n in case.model.graph.node)
    return runs and not _left_out(case)


def _failure(case: Any, run: Callable[..., list[np.ndarray]]) -> str | None:
    for inputs, expected in case.data_sets:
        try:
            values = [onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in inputs]
            wanted = [onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in expected]
            # Dropout before opset 12 leaves it to the run whether it trains; the standard's cases do not.
            results = run(case.model, *values, training=not case.name.endswith("_old"))
            for result, want in zip(results, map(np.asarray, wanted), strict=True):
                assert result.dtype == want.dtype, f"{result.dtype} for {want.dtype}"
                assert result.shape == want.shape, f"{result.shape} for {want.shape}"
                exact = want.dtype.kind in "biu"
                if want.dtype.kind not in "fcbiu":
                    result, want = result.astype(np.float32), want.astype(np.float32)
                close = {"rtol": 0, "atol": 0} if exact else {"rtol": case.rtol, "atol": max(case.atol, 1e-6)}
                np.testing.assert_allclose(result, want, **close)
        except Exception as error:
            return f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _check(cases: list[Any], run: Callable[..., list[np.ndarray]]) -> int:
    failures = [failure for case in cases if (failure := _failure(case, run))]
    print(f"{len(cases) - len(failures)} of {len(cases)} passed")
    assert not failures, f"{len(failures)} of {len(cases)} failed:\n" + "\n".join(failures)
    return len(cases)


@pytest.mark.parametrize("op_type", SAMPLE)
@pytest.mark.filterwarnings("ignore")
def test_operator_conforms(op_type: str, run_onnx: Callable[..., list[np.ndarray]]) -> None:
    importlib.import_module(f"onnx.backend.test.case.node.{MODULES.get(op_type, op_type.lower())}")
    cases = [c for c in node_cases._NodeTestCases if c.model.graph.node[0].op_type == op_type and _relevant(c)]
    assert _check([c for c in cases if "expanded" not in c.name], run_onnx) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_registered_operator_conforms(run_onnx: Callable[..., list[np.ndarray]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [c for c in node_cases.collect_testcases() if _relevant(c)]
    assert _check(cases, run_onnx) > 700
