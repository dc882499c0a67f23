"""Every reader of measured times of operators."""

from __future__ import annotations

from . import deepbench, justus, neusight, simumax

__all__ = ["READERS"]

READERS = (
    neusight.products,
    neusight.convolutions,
    neusight.vectors,
    deepbench.products,
    deepbench.convolutions,
    deepbench.recurrent,
    deepbench.sparse,
    justus.convolutions,
    justus.dense,
    simumax.operators,
)
