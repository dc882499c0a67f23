"""What XLA must be told before it starts.

*Barriers hold.* ``lax.optimization_barrier`` marks what is to be computed once and kept (:func:`.operators.layout.whole`).
XLA for CPUs removes the marks before it fuses, and then computes a long chain of element-wise operators anew for each of its
readers: in a transformer every block computes the residual stream of all blocks before it. The pass that removes them is
switched off, where CPUs compute.

*Sums of products.* jaxlib 0.10 fuses a matrix product and the sum over its rows into one call of its kernel library, and that
call gives wrong numbers where the right operand is a single number that was broadcast:
``(x @ jnp.full((512, 1000), 0.02)).sum(0)`` is not even finite. Gradients of means are such operands. The fusion is switched
off; a test computes this sum, with whatever release is installed.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points, version

__all__ = ["set_flags", "with_flags"]

NO_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_REDUCE"
# XLA ends the process at a flag that it does not know, so it is given to no release that was not seen to need it.
FAULTY = ("0.10.",)
# Names of passes that a release does not have are passed over.
DISABLED, NO_EXPANDER = "--xla_disable_hlo_passes=", "cse_barrier_expander"


def with_flags(flags: str) -> str:
    """`flags` as XLA_FLAGS holds them, and what the installed jaxlib needs; what the user says stays."""
    if version("jaxlib").startswith(FAULTY) and NO_REDUCTIONS.split("=")[0] not in flags:
        flags = f"{flags} {NO_REDUCTIONS}"
    if not entry_points(group="jax_plugins") and NO_EXPANDER not in flags:
        own = re.search(rf"{DISABLED}\S*", flags)
        # The last of several counts, so there must be one.
        flags = f"{flags} {DISABLED}{NO_EXPANDER}" if own is None else flags.replace(own[0], f"{own[0]},{NO_EXPANDER}")
    return flags.strip()


def set_flags() -> None:
    """Sets them for this process; they are read when JAX computes for the first time."""
    flags = with_flags(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags
