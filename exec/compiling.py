"""Functions compiled with what XLA should be told about them, and about no others.

*Kernels of convolutional networks on one core.* XLA for CPUs makes a kernel of every fusion of element-wise operators, by one of two
generators. The newer one keeps what it needs for each kernel until the last has been compiled: a training step of a MobileNet-v3,
which has some hundreds of kernels, takes 1.5 GB to compile with it and 0.8 with the older one, and a fifth more time. On one core
what the older one makes is as fast or faster (ResNet-18 at 64 x 64: 131 ms a step and 139). On several it is slower (140 and
110), and so it is in transformers, which have few kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import jax

from ..models.onnxpp.graph import Operator

__all__ = ["compiled", "compiler_options", "cores"]

OLDER_GENERATOR: Mapping[str, Any] = {"xla_cpu_use_fusion_emitters": False}
# Releases whose older generator was seen to be there; XLA refuses options that it does not know.
KNOWN = ("0.10.",)


def compiler_options(op_types: Collection[str]) -> dict[str, Any]:
    """What XLA is told when it compiles operators of these types together; nothing where it knows best, or the user does."""
    convolves = "Conv" in op_types or "ConvTranspose" in op_types
    if any(option in os.environ.get("XLA_FLAGS", "") for option in OLDER_GENERATOR):
        return {}
    if not convolves or cores() > 1 or jax.default_backend() != "cpu" or not version("jaxlib").startswith(KNOWN):
        return {}
    return dict(OLDER_GENERATOR)


def cores() -> int:
    """That this process computes on: XLA makes a thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiled(function: Callable[..., Any], operators: Iterable[Operator], **how: Any) -> Any:
    """`function`, which computes `operators`, compiled like ``jax.jit(function, **how)`` but with :func:`compiler_options`.

    Called inside another function that is compiled, it becomes part of that, whose options count.
    """
    options = compiler_options({o.op_type for o in operators})
    return _Compiled(function, options, how) if options else jax.jit(function, **how)


class _Compiled:
    """JAX takes options from the outermost function only, and refuses them elsewhere."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], how: Mapping[str, Any]) -> None:
        self._outermost = jax.jit(function, compiler_options=options, **how)
        self._inside = jax.jit(function, **how)

    def __call__(self, *arguments: Any) -> Any:
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
        return (self._inside if inside else self._outermost)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outermost, name)  # `lower`, say
