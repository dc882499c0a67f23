"""Functions compiled with what XLA should be told about them, and about no others.

*Kernels of convolutional networks on one core.* XLA for CPUs makes a kernel of every fusion of element-wise operators,
by one of two generators. The newer one keeps what it needs for each kernel until the last has been compiled, 3 to 9 MB for each operator
of a network; its kernels are mostly faster. On an AMD EPYC (Zen 4) with jaxlib 0.10.2: samples/s of two ranks of one core each as
a multiple of PyTorch's, and the peak of a process that compiles and runs a step of one core's batch:

=================== ========= ============= =============
network             operators older         newer
=================== ========= ============= =============
U-Net, 128 x 128    68        1.22  0.8 GB  1.38  1.4 GB
ResNet-18, 64 x 64  70        1.38  0.7 GB  1.46  1.0 GB
ResNet-18           70        1.14  1.1 GB  1.27  1.5 GB
ResNet-50           176       1.12  1.5 GB  1.16  2.0 GB
MobileNet-v3        187       1.11  1.3 GB  1.15  2.1 GB
=================== ========= ============= =============

So a U-Net, of which a step itself takes little, would need 1.4 times as much memory as PyTorch with the newer one, and a
MobileNet 1.5 times; the older one is taken. On several cores it is slower (ResNet-18 at 64 x 64:
140 ms a step and 110), and so it is in transformers, which have few kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from typing import Any

import jax

from ..models.cost.lowerings_family import older_kernels
from ..models.onnxpp.graph import Operator
from .affinity import allowed_cpus

__all__ = ["compiled", "compiler_options", "options_for"]

OLDER_GENERATOR: Mapping[str, Any] = {"xla_cpu_use_fusion_emitters": False}
# Releases whose older generator was seen to be there; XLA refuses options that it does not know.
KNOWN = ("0.10.",)


def compiler_options(operators: Collection[Operator]) -> dict[str, Any]:
    """What XLA is told when it compiles these together; nothing where it knows best, or the user does."""
    return options_for(any(o.op_type in ("Conv", "ConvTranspose") for o in operators))


def options_for(convolutional: bool) -> dict[str, Any]:
    """The same for what has convolutions, or has not."""
    if any(option in os.environ.get("XLA_FLAGS", "") for option in OLDER_GENERATOR):
        return {}
    if jax.default_backend() != "cpu" or not version("jaxlib").startswith(KNOWN):
        return {}
    if not older_kernels(convolutional, len(allowed_cpus())):
        return {}
    return dict(OLDER_GENERATOR)


def compiled(function: Callable[..., Any], operators: Collection[Operator], **how: Any) -> Any:
    """`function`, which computes `operators`, compiled like ``jax.jit(function, **how)`` but with :func:`compiler_options`.

    Called inside another function that is compiled, it becomes part of that, whose options count.
    """
    options = compiler_options(operators)
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
