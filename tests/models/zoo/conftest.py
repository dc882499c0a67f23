"""Small seeded networks of the zoo, run by onnx's reference evaluator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from hpdlf.models.zoo import build

Run = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def run() -> Run:
    """run(name, samples=2, feeds={}, **hyper): the outputs by name, for random inputs where none are given."""

    def outputs(
        name: str, *, samples: int = 2, feeds: dict[str, np.ndarray] | None = None, **hyper: Any
    ) -> dict[str, np.ndarray]:
        model = build(name, seed=1, **hyper)
        rng = np.random.default_rng(0)
        fed: dict[str, np.ndarray] = {}
        for value in model.graph.input:
            kind = value.type.tensor_type
            shape = [samples if d.dim_param else d.dim_value for d in kind.shape.dim]
            fed[value.name] = (
                rng.integers(0, 2, shape)
                if kind.elem_type == TensorProto.INT64
                else rng.standard_normal(shape, dtype=np.float32)
            )
        results = ReferenceEvaluator(model).run(None, fed | (feeds or {}))
        return dict(zip([o.name for o in model.graph.output], results, strict=True))

    return outputs
