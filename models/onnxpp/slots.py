"""Where operators have their weights and their state: which operand of which operator.

Of an operator that is not listed no operand is a weight, whatever is fed to it; what is added to data or multiplied
with it depends on the graph around it (see :mod:`.parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REARRANGEMENTS", "STATE_SLOTS", "WEIGHT_SLOTS"]

WEIGHT_SLOTS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Einsum": (0, 1, 2, 3),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
STATE_SLOTS: Mapping[str, tuple[int, ...]] = {"BatchNormalization": (3, 4)}
# The same numbers in another arrangement or type: what comes out is the weight that went in.
REARRANGEMENTS = ("Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten", "Cast")
