"""Programs of chains of equal layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy, partition
from hpdlf.models.program import Program
from hpdlf.models.program.lower import lower

LowerChain = Callable[..., Program]


@pytest.fixture(scope="session")
def lower_chain(make_chain: Callable[..., Graph]) -> LowerChain:
    """lower_chain(layers, checkpoint_every=None, **strategy): its program, every layer taking equally long."""

    def make(layers: int, *, checkpoint_every: int | None = None, width: int = 4, **fields: Any) -> Program:
        graph, strategy = make_chain(layers, width), Strategy(**fields)
        cut = partition(
            graph,
            operator_s=[1.0] * layers + [0.0],
            stages=strategy.pipeline,
            bucket_bytes=strategy.bucket_bytes if strategy.data > 1 else None,
            samples=strategy.microbatch_samples,
            seconds_per_byte=0.0,
        )
        return lower(graph, cut, strategy, checkpoint_every=checkpoint_every)

    return make
