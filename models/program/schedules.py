"""Schedules: the order in which a pipeline stage does its forward and backward passes.

A schedule is a function of (stages, stage, microbatches) that yields ("F" or "B", microbatch). A new one goes here and into
:data:`SCHEDULES`; everything else follows from the buffers.

>>> [f"{pass_}{m}" for pass_, m in one_f_one_b(2, 0, 3)]
['F0', 'F1', 'B0', 'F2', 'B1', 'B2']
>>> [f"{pass_}{m}" for pass_, m in gpipe(2, 0, 2)]
['F0', 'F1', 'B0', 'B1']
"""

from collections.abc import Callable, Iterator
from typing import Literal

__all__ = ["SCHEDULES", "Pass", "gpipe", "one_f_one_b"]

Pass = tuple[Literal["F", "B"], int]


def gpipe(stages: int, stage: int, microbatches: int) -> Iterator[Pass]:
    """All forward, then all backward (Huang et al. 2019): bubble (p-1)/(m+p-1), m microbatches in flight."""
    for m in range(microbatches):
        yield "F", m
    for m in range(microbatches):
        yield "B", m


def one_f_one_b(stages: int, stage: int, microbatches: int) -> Iterator[Pass]:
    """One forward, one backward (Narayanan et al. 2019, PipeDream-flush): the same bubble, at most p - stage microbatches in flight."""
    warm = min(stages - stage - 1, microbatches)
    for m in range(warm):
        yield "F", m
    for m in range(microbatches - warm):
        yield "F", warm + m
        yield "B", m
    for m in range(microbatches - warm, microbatches):
        yield "B", m


SCHEDULES: dict[str, Callable[[int, int, int], Iterator[Pass]]] = {"gpipe": gpipe, "1f1b": one_f_one_b}
