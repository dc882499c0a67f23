"""What XLA must be told before it starts.

jaxlib 0.10 fuses a matrix product and the sum over its rows into one call of its kernel library, and that call gives
wrong numbers where the right operand is a single number that was broadcast: ``(x @ jnp.full((512, 1000), 0.02)).sum(0)``
is not even finite. Gradients of means are such operands. The fusion is switched off; a test computes this sum, with
whatever release is installed.
"""

from __future__ import annotations

import os
from importlib.metadata import version

__all__ = ["set_flags", "with_flags"]

NO_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_REDUCE"
# XLA ends the process at a flag that it does not know, so it is given to no release that was not seen to need it.
FAULTY = ("0.10.",)


def with_flags(flags: str) -> str:
    """`flags` as XLA_FLAGS holds them, and what the installed jaxlib needs; what the user says of it stays."""
    name = NO_REDUCTIONS.split("=")[0]
    if name in flags or not version("jaxlib").startswith(FAULTY):
        return flags
    return f"{flags} {NO_REDUCTIONS}".strip()


def set_flags() -> None:
    """Sets them for this process; they are read when JAX computes for the first time."""
    flags = with_flags(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags
