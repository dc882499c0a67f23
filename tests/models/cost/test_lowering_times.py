"""How long ways are expected to take: every way of every shape is known, arithmetic follows the machine, and the fastest is found."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice, pairwise
from math import exp, log
from pathlib import Path
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import DataError
from hpdlf.experiments.measure_lowerings import drawn_shapes
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import lowering_times
from hpdlf.models.cost.lowering_terms import ARITHMETIC, terms
from hpdlf.models.cost.lowering_times import LoweringTimes, Processor, processor_of, slowness
from hpdlf.models.cost.lowerings import (
    Convolution,
    Linear,
    ProductBatch,
    Shape,
    expected_seconds,
    expected_way,
    family_of,
    shape_named,
    ways,
)

TIMES = LoweringTimes.default()
DRAWN = list(islice(drawn_shapes(7), 60))
# What nobody draws: no samples, lines and more than three dims, one filter a group, groups of solids, large windows.
ODD = [
    "conv 0x4x8x8 to 4x8x8 by 3x3/1x1 pad 1+1,1+1 in 4 groups",
    "conv 0x4x8x8 to 6x8x8 by 3x3/1x1 pad 1+1,1+1",
    "conv 2x4x8 to 6x4 by 3/2 pad 1+1 in 2 groups",
    "conv 2x4x5x5x5x5 to 6x5x5x5x5 by 3x3x3x3/1x1x1x1 pad 1+1,1+1,1+1,1+1",
    "conv 2x4x5x5x5 to 4x5x5x5 by 3x3x3/1x1x1 pad 1+1,1+1,1+1 in 4 groups",
    "conv 2x4x5x5x5 to 8x5x5x5 by 3x3x3/1x1x1 pad 1+1,1+1,1+1 in 2 groups",
    "conv 8x512x14x14 to 32x14x14 by 3x3/1x1 pad 1+1,1+1 in 32 groups",
    "conv 2x4x40x40 to 4x40x40 by 9x9/1x1 pad 4+4,4+4 in 4 groups",
    "conv 2x4x40x40 to 6x40x40 by 9x9/1x1 pad 4+4,4+4 dilated 2x1",
    "conv 2x4x8x8 to 6x10x10 by 1x1/1x1 pad 1+1,1+1",
    "linear 1x1 to 1 transposed",
    "products 1x1x1 by 1x1",
]
CONV = Convolution(
    samples=8,
    channels=64,
    filters=64,
    groups=1,
    size=(28, 28),
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    pads=((1, 1), (1, 1)),
    output=(28, 28),
)


def everything(shape: Shape) -> list[tuple[str, str]]:
    return [(direction, way) for direction in family_of(shape).directions for way in ways(shape, direction)]


@pytest.mark.parametrize("shape", [*DRAWN, *map(shape_named, ODD)], ids=lambda s: s.key)
def test_every_way_of_every_shape_is_known(shape: Shape) -> None:
    for direction, way in everything(shape):
        assert expected_way(shape, direction, Processor(threads=3)) in ways(shape, direction)  # type: ignore[arg-type]
        found = terms(shape, direction, way)  # type: ignore[arg-type]
        assert min(found.values()) >= 0
        alone, together = (
            sum(TIMES.parts(shape, direction, way, threads=n, older=False))  # type: ignore[arg-type]
            for n in (1, 4)
        )
        assert 0 < together <= alone < 60
        found = expected_seconds(shape, direction, way, Processor(threads=4))  # type: ignore[arg-type]
        assert found == pytest.approx(together)


@pytest.mark.parametrize("shape", [*DRAWN, *map(shape_named, ODD)], ids=lambda s: s.key)
def test_a_key_names_its_shape(shape: Shape) -> None:
    assert shape_named(shape.key) == shape


@pytest.mark.parametrize("key", ["conv", "conv 8x3 to", "linear 3x4", "products 2x3x4 by 5x6", "pool 3x3", ""])
def test_what_names_no_shape_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"is no key of|is the key of no"):
        shape_named(key)


@given(st.sampled_from(DRAWN), st.integers(2, 5))
def test_more_work_takes_no_less_time(shape: Shape, times: int) -> None:
    name = {"conv": "samples", "linear": "rows", "products": "batch"}[family_of(shape).name]
    # Of what fills vectors: a few rows more may take less, like 16 numbers less than 15.
    shape = replace(shape, **{name: 16 * shape.count})  # type: ignore[type-var]
    larger = replace(shape, **{name: times * shape.count})  # type: ignore[type-var]
    for direction, way in everything(shape):
        if direction == "weight" and isinstance(shape, (Convolution, Linear)):
            continue  # which operand stands on the left depends on the rows, and vectors that more samples fill are quicker
        few, many = (TIMES.seconds(s, direction, way, Processor()) for s in (shape, larger))  # type: ignore[arg-type]
        assert many >= few * 0.999


def test_arithmetic_takes_as_long_as_the_machine_says() -> None:
    arithmetic, rest = TIMES.parts(CONV, "forward", "im2col", threads=2)
    assert arithmetic > 0
    assert rest > 0
    for slower in (0.5, 1.0, 3.0):
        on = Processor(threads=2, slower=slower)
        assert TIMES.seconds(CONV, "forward", "im2col", on) == pytest.approx(slower * arithmetic + rest)
    known = TIMES.thetas["conv forward im2col"]
    made = LoweringTimes({"conv forward im2col": {n: v for n, v in known.items() if n.split()[0] in ARITHMETIC}}, 1.0)
    assert made.parts(CONV, "forward", "im2col", threads=2) == (pytest.approx(arithmetic), lowering_times.CALL_S)


def test_on_one_core_convolutions_have_kernels_of_their_own() -> None:
    def parts(shape: Shape, threads: int, older: bool | None = None) -> tuple[float, float]:
        return TIMES.parts(shape, "weight", "xla", threads=threads, older=older)

    assert parts(CONV, 1) == parts(CONV, 1, older=True) != parts(CONV, 1, older=False)
    assert parts(CONV, 2) == parts(CONV, 2, older=False)
    layer = Linear(rows=64, wide=64, result=64)
    assert parts(layer, 1) == parts(layer, 1, older=False)


def test_a_profile_says_how_fast_a_core_is() -> None:
    core = load_cluster("generic-x86:1x1").device
    one, four = processor_of(core), processor_of(load_cluster("generic-x86:1x1x4").device, 4)
    assert (one.kind, one.threads, four.threads) == ("cpu", 1, 4)
    assert one.slower == pytest.approx(four.slower)
    assert one.slower > 1.0
    gpu = processor_of(load_cluster("dgx-a100").device)
    assert gpu.kind == "gpu"
    assert expected_way(CONV, "forward", gpu) == "xla"
    assert expected_seconds(CONV, "forward", "xla", gpu) is None
    assert expected_seconds(CONV, "forward", "xla", Processor(), item_bytes=2) is None


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.3, 7.0])
def test_measurements_say_how_fast_a_machine_is(truth: float) -> None:
    on, draw = Processor(threads=2, slower=truth), Random(0)
    timed = [
        (shape, direction, way, TIMES.seconds(shape, direction, way, on) * exp(draw.gauss(0.0, 0.25)))
        for shape in DRAWN
        for direction, way in everything(shape)
    ]
    assert slowness(timed, threads=2) == pytest.approx(truth, rel=0.15)  # type: ignore[arg-type]
    assert slowness([], threads=2) is None
    assert slowness(timed[:5], threads=2) is None  # type: ignore[arg-type]


def test_sums_of_shifted_pictures_say_nothing_of_arithmetic() -> None:
    depthwise = [s for s in islice(drawn_shapes(3, ["depthwise"]), 30) if isinstance(s, Convolution)]
    timed = [
        (shape, direction, "shifted", TIMES.seconds(shape, direction, "shifted", Processor()))
        for shape in depthwise
        for direction in ("forward", "input")
    ]
    assert slowness(timed, threads=1) is None  # type: ignore[arg-type]


# Measured on two cores of another processor than the thetas were, an AMD EPYC (Zen 4) with jaxlib 0.10.2 in float32, 16 samples of
# 3 x 3: (channels, filters, picture, stride), and milliseconds of the forward pass and of the weight's gradient by XLA's own, copied
# windows, and Winograd's tiles of 2 and of 4.
ZEN_4 = [
    ((64, 64, 56, 1), (37, 36, 19, 17), (40, 50, 30, 19)),
    ((128, 128, 28, 1), (19, 26, 13, 10), (21, 32, 16, 12)),
    ((256, 256, 14, 1), (20, 26, 14, 13), (22, 28, 19, 27)),
    ((512, 512, 7, 1), (22, 20, 15, 15), (21, 22, 19, 32)),
    ((256, 256, 4, 1), (1.7, 1.8, 2.0, 3.8), (3.5, 2.1, 2.4, 7.7)),
    ((512, 512, 2, 1), (130, 3.2, 4.7, 10), (2.6, 6.1, 9.3, 30)),
    ((64, 128, 56, 2), (21, 16), (19, 24)),
    ((256, 512, 14, 2), (12, 10), (12, 11)),
]


def zen_4() -> list[tuple[Convolution, str, dict[str, float]]]:
    rows = []
    for (channels, filters, size, stride), *both in ZEN_4:
        shape = replace(
            CONV,
            samples=16,
            channels=channels,
            filters=filters,
            size=(size, size),
            strides=(stride, stride),
            output=(size // stride,) * 2,
        )
        for direction, took in zip(("forward", "weight"), both, strict=True):
            names = ("xla", "im2col", "winograd2", "winograd4")[: len(took)]
            rows.append((shape, direction, {way: ms / 1e3 for way, ms in zip(names, took, strict=True)}))
    return rows


def test_another_generation_of_processors_is_predicted_by_its_arithmetic() -> None:
    """That nobody fitted to."""
    rows = zen_4()
    timed = [(shape, direction, way, s) for shape, direction, took in rows for way, s in took.items()]
    found = slowness(timed, threads=2)  # type: ignore[arg-type]
    assert found is not None
    assert 1.4 < found < 2.6  # it has half of the multipliers
    on = Processor(threads=2, slower=found)
    off = [abs(log(TIMES.seconds(s, d, way, on) / seconds)) for s, d, way, seconds in timed]  # type: ignore[arg-type]
    assert exp(median(off)) < 1.4
    taken = best = 0.0
    for shape, direction, took in rows:
        modelled = {way: TIMES.seconds(shape, direction, way, on) for way in took}  # type: ignore[arg-type]
        taken += took[min(modelled, key=lambda way: modelled[way])]
        best += min(took.values())
    assert taken < 1.1 * best


def test_the_way_that_is_expected_takes_least() -> None:
    for shape in (CONV, Linear(rows=512, wide=64, result=512), ProductBatch(batch=8, rows=64, inner=64, columns=32)):
        for direction in family_of(shape).directions:
            on = Processor(threads=2)
            took = {way: TIMES.seconds(shape, direction, way, on) for way in ways(shape, direction)}
            assert took[expected_way(shape, direction, on)] == min(took.values())


@pytest.mark.parametrize(
    ("more", "of_16_bits", "on_gpu"),
    [
        ({}, "xla", "xla"),
        ({"kernel": (1, 1), "pads": ((0, 0),) * 2}, "matmul", "matmul"),
        ({"groups": 8}, "split", "xla"),
        ({"groups": 64}, "xla", "xla"),
    ],
)
def test_what_was_not_learned_is_told_as_a_whole(more: dict[str, object], of_16_bits: str, on_gpu: str) -> None:
    conv = Convolution(**{**vars(CONV), **more})
    for direction in family_of(conv).directions:
        assert expected_way(conv, direction, item_bytes=2) == of_16_bits
        assert expected_way(conv, direction, Processor(kind="gpu")) == on_gpu


def test_the_gradient_of_values_is_computed_with_few_rows_on_the_left() -> None:
    """Of long sequences: XLA's own gathers 512 rows column by column."""
    values = ProductBatch(batch=64, rows=512, inner=512, columns=64)
    assert expected_way(values, "right", Processor(threads=2)).startswith("swapped")


def test_small_windows_of_many_channels_and_places_are_tiled() -> None:
    """What everybody knows of them, on a processor of whatever speed."""
    large = replace(CONV, samples=16, channels=128, filters=128)
    for slower in (1.0, 2.0):
        assert expected_way(large, "forward", Processor(slower=slower)).startswith("winograd")
    took = [TIMES.seconds(replace(large, samples=n), "forward", "winograd4", Processor()) for n in (1, 4, 16)]
    assert all(a < b for a, b in pairwise(took))


def test_damaged_files_say_how_to_mend_them(tmp_path: Path) -> None:
    path = tmp_path / "lowering_times.json"

    def refused(what: str) -> None:
        lowering_times._read.cache_clear()
        with pytest.raises(DataError, match=what):
            lowering_times._read(path)

    refused("cannot be read: No such file")
    path.write_text("{")
    refused(r"is damaged .*fit_lowerings")
    path.write_text(json.dumps({"format": "hpdlf.cpu_terms"}))
    refused("no file of times of lowerings")
    path.write_text(json.dumps({"format": lowering_times.FORMAT, "version": 99}))
    refused("version 99.*update hpdlf")
    path.write_text(json.dumps({"format": lowering_times.FORMAT, "version": 1, "flops_per_s": 1e11}))
    refused("is damaged .*thetas")
