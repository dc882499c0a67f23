"""Operators of a graph that runs in this process, computed as `hpdlf tune` found to be fastest here.

A plan says in its ONNX++ file how its operators are computed. What runs without a plan, in a notebook, is told by the user's
database.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from ..errors import DataError
from ..models.cost import ObservationDatabase
from ..models.cost.lowering_choice import choose_all, measured_processor, measured_ways
from ..models.cost.lowerings import Processor
from ..models.onnxpp.graph import Graph
from .environment import examine_machine

__all__ = ["as_tuned"]


def as_tuned(graph: Graph, *, samples: int, dtype: str, database: ObservationDatabase | None = None) -> Graph:
    """`graph` for `samples` samples at once on all CPUs of this process, its operators as measured ways are fastest; those that
    nobody measured as they are expected to be, on a machine as fast as the measured ones say.

    Where nothing was measured everything is left to the executor, and where the database cannot be read, with a warning.
    """
    store, machine = ObservationDatabase() if database is None else database, examine_machine()
    try:
        measured = measured_ways(store, machine=machine.fingerprint, threads=machine.allowed_cpus, dtype=dtype)
    except DataError as error:
        warnings.warn(f"What `hpdlf tune` measured is not used: {error}", stacklevel=2)
        return graph
    if not measured:
        return graph
    on = measured_processor(Processor(threads=machine.allowed_cpus), measured, dtype=dtype)
    chosen: Mapping[str, Mapping[str, str]] = {
        name: {direction: hint.way for direction, hint in told.items()}
        for name, told in choose_all(graph, samples=samples, measured=measured, on=on, dtype=dtype).items()
    }
    return replace(graph, operators=tuple(replace(o, lowering=chosen.get(o.name, {})) for o in graph.operators))
