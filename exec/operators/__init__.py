"""ONNX operators as JAX functions, by family. Importing this registers them all; `registry` says how to add one."""

from . import (
    attention,
    casting,
    control,
    convolution,
    elementwise,
    loss,
    matmul,
    normalisation,
    pooling,
    reduction,
    resizing,
    shape,
)
from .registry import Context, Lowering, Value, host_lowering, lowering, lowers, registered, static, step_context

__all__ = [
    "Context",
    "Lowering",
    "Value",
    "attention",
    "casting",
    "control",
    "convolution",
    "elementwise",
    "host_lowering",
    "loss",
    "lowering",
    "lowers",
    "matmul",
    "normalisation",
    "pooling",
    "reduction",
    "registered",
    "resizing",
    "shape",
    "static",
    "step_context",
]
