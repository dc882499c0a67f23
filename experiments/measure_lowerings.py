"""Timing the ways to compute shapes that are drawn at random: what `fit_lowerings` learns from.

``python -m hpdlf.experiments.measure_lowerings --database FILE --threads 1 --seconds 900`` draws shapes as networks have them
(convolutions of all kinds, linear layers, batches of products) and times every way of every direction, as ``hpdlf tune`` does
for those of a network, until the time is over. The same seed draws the same shapes; another ``--threads`` of the same seed
measures them with as many threads.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import exp, log
from pathlib import Path

from ..exec.environment import examine_machine
from ..exec.tuning import Answer, Question, cores_for, time_ways
from ..models.cost import ObservationDatabase
from ..models.cost.lowerings import Convolution, Linear, ProductBatch, Shape, family_of, ways
from .tuning import keep_answers

__all__ = ["KINDS", "drawn_shapes", "main", "questions"]

# What a direction of a drawn shape may do and hold: one that takes seconds tells no more than one that takes a tenth.
LEAST_FLOPS, MOST_FLOPS, MOST_ELEMENTS = 3e5, 1.2e10, 4e7
CHUNK = 30


def drawn_shapes(seed: int, kinds: Sequence[str] = ()) -> Iterator[Shape]:
    """Shapes without end, each of a random kind of `kinds` (names of :data:`KINDS`), or of all."""
    draw = random.Random(seed)
    makers = [KINDS[name] for name in kinds or KINDS]
    while True:
        shape = draw.choice(makers)(draw)
        if LEAST_FLOPS <= shape.flops <= MOST_FLOPS and _elements(shape) <= MOST_ELEMENTS:
            yield shape


def _size(draw: random.Random, low: int, high: int) -> int:
    """A number between, evenly on a logarithmic scale; most are multiples of a power of two, as people choose them."""
    value = round(exp(draw.uniform(log(low), log(high + 0.5))))
    step = draw.choice((1, 8, 8, 16, 16, 32, 64, 64))
    return min(max(low, round(value / step) * step), high) if value >= step else value


def _picture(draw: random.Random) -> int:
    return draw.choice((4, 7, 8, 12, 14, 16, 17, 24, 28, 28, 32, 35, 48, 56, 56, 64, 96, 112, 128, 160, 224))


def _convolution(
    draw: random.Random, channels: int, filters: int, kernel: tuple[int, ...], stride: int, groups: int = 1
) -> Convolution:
    size = (_picture(draw),) * len(kernel)
    pads = tuple(((k - 1) // 2, (k - 1) // 2) for k in kernel)
    output = tuple((s + 2 * p[0] - k) // stride + 1 for s, p, k in zip(size, pads, kernel, strict=True))
    return Convolution(
        samples=draw.choice((1, 2, 4, 8, 8, 16, 16, 32)),
        channels=channels,
        filters=filters,
        groups=groups,
        size=size,
        kernel=kernel,
        strides=(stride,) * len(kernel),
        dilations=(1,) * len(kernel),
        pads=pads,
        output=output,
    )


def _square(draw: random.Random) -> Convolution:
    """3 x 3, most often as many filters as channels, as residual blocks have them."""
    channels = _size(draw, 8, 1024)
    filters = draw.choice((channels, channels, 2 * channels, _size(draw, 8, 1024)))
    return _convolution(draw, channels, filters, (3, 3), draw.choice((1, 1, 1, 2)))


def _pointwise(draw: random.Random) -> Convolution:
    return _convolution(draw, _size(draw, 8, 2048), _size(draw, 8, 2048), (1, 1), draw.choice((1, 1, 1, 2)))


def _depthwise(draw: random.Random) -> Convolution:
    channels, kernel = _size(draw, 8, 1024), draw.choice((3, 3, 5, 7))
    return _convolution(draw, channels, channels, (kernel, kernel), draw.choice((1, 1, 2)), channels)


def _wide(draw: random.Random) -> Convolution:
    """Windows that are larger, or of different sides."""
    kernel = draw.choice(((5, 5), (7, 7), (1, 7), (7, 1), (1, 3), (3, 1), (2, 2), (4, 4)))
    return _convolution(draw, _size(draw, 8, 512), _size(draw, 8, 512), kernel, draw.choice((1, 1, 1, 2)))


def _first(draw: random.Random) -> Convolution:
    """What reads pictures."""
    kernel = draw.choice(((3, 3), (7, 7), (5, 5), (4, 4), (8, 8)))
    return _convolution(draw, draw.choice((1, 3, 3, 4)), _size(draw, 16, 128), kernel, draw.choice((1, 2, 2, 4)))


def _grouped(draw: random.Random) -> Convolution:
    """Groups of several channels each."""
    groups, wide = draw.choice((2, 3, 4, 8, 16, 32)), _size(draw, 2, 64)
    return _convolution(
        draw, groups * wide, groups * wide * draw.choice((1, 1, 2)), (3, 3), draw.choice((1, 1, 2)), groups
    )


def _any_convolution(draw: random.Random) -> Convolution:
    """Of one or three dims."""
    rank = draw.choice((1, 3))
    kernel = (draw.choice((3, 3, 5, 7, 9) if rank < 3 else (3,)),) * rank
    return _convolution(draw, _size(draw, 8, 512), _size(draw, 8, 512), kernel, draw.choice((1, 1, 2)))


def _linear(draw: random.Random) -> Linear:
    return Linear(
        rows=_size(draw, 1, 8192),
        wide=_size(draw, 8, 4096),
        result=_size(draw, 2, 4096),
        transposed=draw.random() < 0.5,
    )


def _products(draw: random.Random) -> ProductBatch:
    batch, long, wide = _size(draw, 2, 256), _size(draw, 8, 1024), draw.choice((16, 32, 64, 64, 80, 128))
    inner, columns = draw.choice(((wide, long), (long, wide), (wide, _size(draw, 8, 1024))))
    return ProductBatch(batch=batch, rows=long, inner=inner, columns=columns)


KINDS: dict[str, Callable[[random.Random], Shape]] = {
    "square": _square,
    "pointwise": _pointwise,
    "depthwise": _depthwise,
    "wide": _wide,
    "first": _first,
    "grouped": _grouped,
    "other": _any_convolution,
    "linear": _linear,
    "products": _products,
}
"""By name, how a shape of the kind is drawn."""


def _elements(shape: Shape) -> float:
    """Of the largest array that some way makes of it, about."""
    if isinstance(shape, Convolution):
        window = 1
        for size in (*shape.kernel, *shape.output):
            window *= size
        inputs = shape.samples * shape.channels
        for size in shape.size:
            inputs *= size
        return max(shape.samples * shape.channels * window, inputs)
    if isinstance(shape, Linear):
        return max(shape.rows * shape.wide, shape.rows * shape.result, shape.wide * shape.result)
    assert isinstance(shape, ProductBatch)
    return shape.batch * max(shape.rows * shape.inner, shape.inner * shape.columns, shape.rows * shape.columns)


def questions(shapes: Iterator[Shape]) -> Iterator[Question]:
    """One for each direction, also where there is one way alone: the cost model wants to know how long it takes."""
    for shape in shapes:
        for direction in family_of(shape).directions:
            # XLA's own may take a hundred times as long as the next way; whatever was learned before does not matter here.
            yield Question(shape=shape, direction=direction, first=ways(shape, direction)[:2][-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.measure_lowerings", description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), help="draw these alone (default: all)")
    options = parser.parse_args(arguments)
    start, machine = time.monotonic(), examine_machine()
    threads, store = len(cores_for(options.threads)), ObservationDatabase(options.database)
    asked, timed = questions(drawn_shapes(options.seed, options.kinds or ())), 0
    while (left_s := options.seconds - (time.monotonic() - start)) > 1:
        chunk = list(islice(asked, CHUNK))
        if not chunk:
            break
        answers = []
        try:
            for said in time_ways(chunk, seconds=left_s, threads=threads):
                answers += [said] if isinstance(said, Answer) else []
        finally:
            keep_answers(answers, store, f"drawn {options.seed} {timed}", machine, threads, "float32")
        timed += len(answers)
        sys.stderr.write(f"\r{timed} directions of shapes ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
