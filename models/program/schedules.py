"""Schedules: the order in which a rank of a pipeline does the passes of its stages.

A schedule is a function of (pipeline, place, microbatches, interleave) that yields ("F" forward, "B" backward or "W" gradients of
weights, microbatch, chunk); `place` is the rank's place in the pipeline, and chunk c its stage ``place + c * pipeline``. Without "W" a
"B" is the whole backward pass. A new one goes here and into :data:`SCHEDULES`; everything else follows from the buffers.

>>> [f"{s.kind}{s.microbatch}" for s in one_f_one_b(2, 0, 3)]
['F0', 'F1', 'B0', 'F2', 'B1', 'B2']
>>> [f"{s.kind}{s.microbatch}" for s in gpipe(2, 0, 2)]
['F0', 'F1', 'B0', 'B1']
>>> [f"{s.kind}{s.microbatch}.{s.chunk}" for s in one_f_one_b(2, 1, 2, interleave=2)]
['F0.0', 'F1.0', 'F0.1', 'B0.1', 'F1.1', 'B1.1', 'B0.0', 'B1.0']
>>> [f"{s.kind}{s.microbatch}" for s in zero_bubble(2, 1, 2)]
['F0', 'B0', 'F1', 'B1', 'W0', 'W1']
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

__all__ = ["SCHEDULES", "Slot", "gpipe", "one_f_one_b", "zero_bubble"]


class Slot(NamedTuple):
    """One pass of one of a rank's stages."""

    kind: Literal["F", "B", "W"]
    microbatch: int
    chunk: int = 0


def gpipe(pipeline: int, place: int, microbatches: int, interleave: int = 1) -> Iterator[Slot]:
    """All forward, then all backward (Huang et al. 2019): bubble (p-1)/(m+p-1), m microbatches in flight."""
    for m in range(microbatches):
        yield Slot("F", m)
    for m in range(microbatches):
        yield Slot("B", m)


def one_f_one_b(pipeline: int, place: int, microbatches: int, interleave: int = 1) -> Iterator[Slot]:
    """One forward, one backward (Narayanan et al. 2019, PipeDream-flush): the same bubble, at most p - place microbatches in flight.

    Interleaved (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), microbatches go in groups of p through one chunk after the
    other, and the bubble is divided by the number of chunks.
    """
    total = microbatches * interleave
    warm = pipeline - place - 1
    if interleave > 1:
        warm = 2 * warm + (interleave - 1) * pipeline
    warm = min(warm, total)

    def slot(kind: Literal["F", "B"], k: int) -> Slot:
        group, within = divmod(k, pipeline * interleave)
        chunk, offset = divmod(within, pipeline)
        if interleave == 1:
            return Slot(kind, k)
        return Slot(kind, group * pipeline + offset, chunk if kind == "F" else interleave - 1 - chunk)

    for k in range(warm):
        yield slot("F", k)
    for k in range(total - warm):
        yield slot("F", warm + k)
        yield slot("B", k)
    for k in range(total - warm, total):
        yield slot("B", k)


def zero_bubble(pipeline: int, place: int, microbatches: int, interleave: int = 1) -> Iterator[Slot]:
    """1F1B that puts off the gradients of weights by `place` microbatches (Qi et al. 2023, arXiv 2401.10241, ZB-H1): gradients of
    inputs reach the stage before sooner, the weights' fill the bubble, and every rank holds p microbatches at most.
    """
    delayed = 0
    for slot in one_f_one_b(pipeline, place, microbatches):
        yield slot
        if slot.kind == "B" and slot.microbatch >= place:
            yield Slot("W", delayed)
            delayed += 1
    for m in range(delayed, microbatches):
        yield Slot("W", m)


Schedule = Callable[[int, int, int, int], Iterator[Slot]]
SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_f_one_b, "zero_bubble": zero_bubble}
