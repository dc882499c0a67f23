"""Every way to compute a convolution and its gradients gives what XLA's own convolution gives."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.operators import convolution_depthwise, convolution_winograd
from hpdlf.exec.operators.chosen import way_of
from hpdlf.exec.operators.convolution import computed
from hpdlf.exec.operators.layout import largest_divisor
from hpdlf.models.cost.lowerings import Convolution, Direction, ways
from hpdlf.models.cost.lowerings_convolution import CONVOLUTIONS, bundles_of
from hpdlf.models.onnxpp.graph import Operator

DIRECTIONS = tuple(CONVOLUTIONS.directions)
# channels, filters, groups
CHANNELS = {"one group": (3, 5, 1), "depthwise": (4, 4, 4), "depthwise twice": (3, 6, 3), "grouped": (4, 6, 2)}
PADS = {
    "none": lambda k: (0, 0),
    "same": lambda k: (k // 2, k // 2),
    "after": lambda k: (0, 1),
    "both": lambda k: (1, 2),
}


def shape(
    channels: tuple[int, int, int],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[tuple[int, int], ...] | None = None,
    samples: int = 2,
) -> Convolution:
    rank = len(size)
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or ((0, 0),) * rank
    output = tuple(
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(size, pads, kernel, dilations, strides, strict=True)
    )
    return Convolution(
        samples=samples,
        channels=channels[0],
        filters=channels[1],
        groups=channels[2],
        size=size,
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output=output,
    )


def operands(conv: Convolution, direction: Direction, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((conv.samples, conv.channels, *conv.size))
    w = draw.standard_normal((conv.filters, conv.channels // conv.groups, *conv.kernel))
    gradient = draw.standard_normal((conv.samples, conv.filters, *conv.output))
    a, b = {"forward": (x, w), "input": (gradient, w), "weight": (x, gradient)}[direction]
    return a.astype(dtype), b.astype(dtype)


def results(
    conv: Convolution, wanted: Mapping[Direction, Sequence[str]], dtype: Any = np.float64
) -> dict[Direction, dict[str, jax.Array]]:
    """What the ways of each direction give, all of them compiled together."""

    def everything(given: dict[Direction, tuple[jax.Array, jax.Array]]) -> dict[Direction, dict[str, jax.Array]]:
        return {d: {way: computed(way, d, conv)(*given[d]) for way in names} for d, names in wanted.items()}

    return jax.jit(everything)({d: operands(conv, d, dtype) for d in wanted})


def check(conv: Convolution) -> set[str]:
    """The ways that were compared with XLA's."""
    found = set()
    for direction, by_way in results(
        conv, {d: tuple(dict.fromkeys((*ways(conv, d), "xla"))) for d in DIRECTIONS}
    ).items():
        wanted = by_way.pop("xla")
        for way, got in by_way.items():
            assert got.shape == wanted.shape, (conv.key, direction, way)
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10, err_msg=f"{conv.key}: {direction} by {way}")
            found.add(way)
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "pads", ["both", *(pytest.param(p, marks=pytest.mark.slow) for p in ("none", "same", "after"))]
)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(1, 1, 1), (1, 2, 1), pytest.param(3, 1, 1, marks=pytest.mark.slow), (3, 2, 2), (5, 2, 1)],  # 3 x 3: below too
)
@pytest.mark.parametrize("channels", ["one group", "depthwise twice"])
def test_every_way_is_what_xla_computes(channels: str, kernel: int, stride: int, dilation: int, pads: str) -> None:
    check(
        shape(
            CHANNELS[channels],
            (7, 10),
            (kernel,) * 2,
            strides=(stride,) * 2,
            dilations=(dilation,) * 2,
            pads=(PADS[pads](kernel), PADS["none"](kernel) if pads == "both" else PADS[pads](kernel)),
        )
    )


UNUSUAL = {
    "one dim": (shape((3, 5, 1), (9,), (3,), strides=(2,), pads=((1, 0),)), {"im2col", "taps"}),
    "one dim, depthwise": (shape((4, 4, 4), (9,), (3,), dilations=(2,), pads=((1, 2),)), {"shifted"}),
    "three dims": (
        shape((2, 3, 1), (4, 5, 4), (2, 3, 2), strides=(1, 2, 1), pads=((0, 1), (1, 1), (0, 0))),
        {"im2col", "taps"},
    ),
    "three dims, depthwise": (shape((3, 3, 3), (4, 5, 4), (2, 3, 2), pads=((0, 1), (1, 1), (0, 0))), {"shifted"}),
    "more rows than samples": (shape((4, 4, 4), (40, 5), (3, 3), samples=35), {"shifted", "rows"}),
    "uneven": (shape((3, 2, 1), (9, 8), (5, 3), strides=(1, 2), dilations=(2, 1)), {"im2col", "taps"}),
    "dilated depthwise": (shape((4, 4, 4), (11, 9), (5, 5), dilations=(2, 1), pads=((2, 2),) * 2), {"shifted", "rows"}),
    "one group": (
        shape((3, 5, 1), (5, 13), (3, 3), pads=((2, 0), (0, 2))),
        {"im2col", "taps", "winograd2", "winograd4"},
    ),
    "windows in the padding": (
        shape((3, 5, 1), (5, 6), (2, 2), pads=((2, 2), (2, 0)), strides=(2, 1)),
        {"im2col", "taps"},
    ),
    "windows in the padding, grouped": (shape((4, 6, 2), (5, 6), (2, 3), pads=((3, 2), (0, 3))), {"split"}),
    "product": (shape((3, 5, 1), (5, 6), (1, 1), strides=(2, 1)), {"matmul"}),
    "grouped": (shape(CHANNELS["grouped"], (7, 6), (3, 3), strides=(2, 2), pads=((1, 1),) * 2), {"split"}),
    "bundles of groups": (shape((64, 128, 16), (5, 6), (3, 2), pads=((1, 1), (0, 1))), {"split"}),
    "groups of products": (shape((9, 12, 3), (5, 6), (1, 1), strides=(2, 1)), {"split"}),
    "three dims, grouped": (shape((8, 4, 2), (4, 5, 4), (2, 3, 2), pads=((0, 1), (1, 1), (0, 0))), {"split"}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_shapes_have_these_ways(case: str) -> None:
    conv, wanted = UNUSUAL[case]
    assert check(conv) == wanted


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_groups_are_convolutions_of_their_own(direction: Direction) -> None:
    """What everything is compared with, by its definition: each group sees its own channels."""
    conv = shape((4, 6, 2), (6, 7), (3, 3), strides=(2, 1), pads=((1, 0), (1, 1)))
    a, b = operands(conv, direction)
    single = shape((2, 3, 1), (6, 7), (3, 3), strides=(2, 1), pads=((1, 0), (1, 1)))
    kernel_axis = 1 if direction == "weight" else 0
    alone = jax.jit(computed("im2col", direction, single))
    parts = [
        np.asarray(alone(*pair)) for pair in zip(np.split(a, 2, axis=1), np.split(b, 2, axis=kernel_axis), strict=True)
    ]
    whole = np.concatenate(parts, axis=0 if direction == "weight" else 1)
    np.testing.assert_allclose(jax.jit(computed("xla", direction, conv))(a, b), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "bundles"),
    [
        (128, 128, 32, 4),  # four channels a group, of which eight make 32
        (1024, 1024, 32, 32),
        (2048, 2048, 64, 32),  # no more
        (96, 192, 3, 3),
        (96, 48, 3, 1),  # filters are the fewest
        (60, 60, 6, 1),  # 30 channels in three groups are too few
        (8, 8, 2, 1),
        (512, 32, 32, 1),  # one filter a group
    ],
)
def test_groups_are_bundled_until_they_have_channels_enough(
    channels: int, filters: int, groups: int, bundles: int
) -> None:
    count, one = bundles_of(shape((channels, filters, groups), (7, 7), (3, 3)))
    assert (count, one.groups, one.channels, one.filters) == (bundles, 1, channels // bundles, filters // bundles)


def test_bundles_of_groups_add_up_in_products_in_16_bits() -> None:
    conv = shape((32, 32, 8), (6, 6), (3, 3), pads=((1, 1),) * 2)
    exact = results(conv, dict.fromkeys(DIRECTIONS, ("split",)))
    for direction, found in results(conv, dict.fromkeys(DIRECTIONS, ("split",)), np.float16).items():
        wanted = np.asarray(exact[direction]["split"])
        assert found["split"].dtype == np.float16
        assert np.abs(found["split"] - wanted).max() < 2e-3 * np.abs(wanted).max(), direction


@pytest.mark.usefixtures("x64")
def test_winograd_rounds_little_in_float32() -> None:
    conv = shape((32, 16, 1), (14, 15), (3, 3), pads=((1, 1),) * 2)
    exact = results(conv, dict.fromkeys(DIRECTIONS, ("xla",)))
    found = results(conv, dict.fromkeys(DIRECTIONS, ("winograd2", "winograd4")), np.float32)
    for direction, by_way in found.items():
        wanted = exact[direction]["xla"]
        for way, got in by_way.items():
            assert got.dtype == np.float32
            assert np.abs(got - wanted).max() < 2e-4 * np.abs(wanted).max(), (direction, way)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("limit", [1, 20_000])
@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_adds_the_weights_gradient_up_in_chunks(
    tile: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = shape((3, 5, 1), (8, 9), (3, 3), pads=((1, 0), (1, 1)), samples=6)
    given = operands(conv, "weight")
    wanted = jax.jit(computed("xla", "weight", conv))(*given)
    monkeypatch.setattr(convolution_winograd, "CHUNK_BYTES", limit)
    chunks = convolution_winograd._chunks(conv, tile)
    assert chunks == 6 if limit == 1 else 1 < chunks < 6
    found = jax.jit(computed(f"winograd{tile}", "weight", conv))(*given)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("limit", [1, 2000])
def test_sums_of_rows_go_block_by_block(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = shape((3, 6, 3), (25, 11), (3, 2), strides=(2, 1), dilations=(2, 3), pads=((1, 0), (0, 2)), samples=3)
    assert conv.output == (11, 10)
    conv = replace(conv, output=(10, 10))  # a window may end before the last element
    given = operands(conv, "weight")
    wanted = jax.jit(computed("shifted", "weight", conv))(*given)
    monkeypatch.setattr(convolution_depthwise, "BLOCK_BYTES", limit)
    rows = largest_divisor(10, limit // (10 * 6 * 8))
    assert rows == 1 if limit == 1 else 1 < rows < 10
    found = jax.jit(computed("rows", "weight", conv))(*given)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_sums_of_rows_are_added_up_in_32_bits() -> None:
    conv = shape((2, 2, 2), (64, 64), (1, 1), samples=1)
    ones = np.ones((1, 2, 64, 64), np.float16)
    np.testing.assert_array_equal(computed("rows", "weight", conv)(ones, ones), np.full((2, 1, 1, 1), 4096, np.float16))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_hint_that_cannot_compute_the_shape_is_refused(direction: Direction) -> None:
    conv = shape((3, 5, 1), (8, 9), (3, 3), strides=(2, 2))
    able = ", ".join(ways(conv, direction))
    with pytest.raises(ModelError, match=f"'c'.* {direction} lowering 'winograd4' cannot compute .*there are {able}"):
        way_of(hinted({direction: "winograd4"}), conv, direction)


def test_a_hint_is_followed() -> None:
    conv = shape((3, 5, 1), (8, 9), (3, 3))
    for direction in DIRECTIONS:
        for way in ways(conv, direction):
            assert way_of(hinted({direction: way}), conv, direction) == way


def hinted(lowering: dict[str, str]) -> Operator:
    return Operator(name="c", op_type="Conv", family="conv", inputs=("x", "w"), outputs=("y",), lowering=lowering)
