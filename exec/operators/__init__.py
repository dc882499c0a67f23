"""ONNX operators as JAX functions, by family. Importing this registers them all; `registry` says how to add one."""

from . import convolution, elementwise, loss, matmul, normalisation, pooling, reduction, shape
from .registry import Context, Lowering, Value, lowering, lowers, registered, static, step_context

__all__ = [
    "Context",
    "Lowering",
    "Value",
    "convolution",
    "elementwise",
    "loss",
    "lowering",
    "lowers",
    "matmul",
    "normalisation",
    "pooling",
    "reduction",
    "registered",
    "shape",
    "static",
    "step_context",
]
