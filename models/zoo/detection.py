"""Detectors of one shot: SSD on ResNet-34 and RetinaNet on ResNeXt-50, as the MLPerf training benchmarks have them.

Sources: Liu et al. 2016 (arXiv 1512.02325), figure 2; Lin et al. 2017 (arXiv 1708.02002), sections 3 and 4, on the
feature pyramid of Lin et al. 2017 (arXiv 1612.03144). Which box is to find which object is worked out before: it comes
with the data. So the graph is static, and it holds its own loss.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from .builder import Builder, need
from .convolution import Map, Norm, add, conv, picture
from .resnet import stages, stem

__all__ = ["pyramid", "retinanet", "ssd_resnet34"]


def pyramid(b: Builder, maps: list[Map], channels: int = 256) -> list[Map]:
    """Maps of `channels` at the sizes of `maps` (fine to coarse), each with what is seen at coarser ones."""
    results: list[Map] = []
    above: Map | None = None
    for level, x in reversed(list(enumerate(maps))):
        with b.scope(f"pyramid.{level}"):
            inner = conv(b, x, channels, 1, norm="none", activation="", name="inner")
            if above is not None:
                sizes = b.constant([*inner.size])
                wide = b.node("Resize", above.tensor, "", "", sizes, mode="nearest", axes=[2, 3])
                inner = add(b, inner, inner._replace(tensor=wide))
            results.append(conv(b, inner, channels, 3, norm="none", activation="", name="outer"))
            above = inner
    return results[::-1]


def _anchors_first(b: Builder, x: Map, width: int) -> tuple[str, int]:
    """A head's map [batch, anchors * width, h, w] as [batch, anchors at all positions, width], and how many they are."""
    anchors, positions = x.channels // width, x.size[0] * x.size[1]
    y = b.node("Transpose", b.reshape(x.tensor, 0, anchors, width, positions), perm=[0, 3, 1, 2])
    return b.reshape(y, 0, anchors * positions, width), anchors * positions


def _box_loss(b: Builder, boxes: str, count: int) -> str:
    """The mean Huber loss, max(d, 0)² / 2 up to 1 and linear beyond, of boxes [batch, count, 4] to the input "boxes_to_find"."""
    wanted = b.input("boxes_to_find", count, 4)
    distance = b.node("Abs", b.node("Sub", boxes, wanted))
    near = b.node("Min", distance, b.constant(1.0))
    far = b.node("Sub", distance, near)
    huber = b.node("Add", b.node("Mul", b.node("Mul", near, near), b.constant(0.5)), far)
    return b.node("ReduceMean", huber, keepdims=0)


def ssd_resnet34(
    *, image: int = 300, classes: int = 81, seed: int | None = None, name: str = "ssd_resnet34"
) -> ModelProto:
    """SSD: input "x" [batch, 3, image, image]; outputs "scores" [batch, boxes, classes], "boxes" [batch, boxes, 4], "loss".

    8,732 boxes at 300. The third stage of the backbone keeps its size (38 x 38), the fourth is left out; five pairs of
    convolutions make the smaller maps. Labels are "labels" [batch, boxes] and "boxes_to_find" [batch, boxes, 4].
    """
    need("image", image, image >= 300, "at least 300")
    b = Builder(name=name, seed=seed)
    x = stages(b, stem(b, picture(b, 3, image, image)), depth=34, strides=(1, 2, 1))[-1]
    maps = [x]
    for level, (middle, out) in enumerate(((256, 512), (256, 512), (128, 256), (128, 256), (128, 256))):
        with b.scope(f"extra{level}"):
            x = conv(b, x, middle, 1, norm="none", name="conv1")
            small = level > 2
            x = conv(b, x, out, 3, stride=1 if small else 2, pad=0 if small else 1, norm="none", name="conv2")
            maps.append(x)
    parts: list[tuple[str, str]] = []
    total = 0
    for level, (x, anchors) in enumerate(zip(maps, (4, 6, 6, 6, 4, 4), strict=True)):
        with b.scope(f"head{level}"):
            by_class = conv(b, x, anchors * classes, 3, norm="none", activation="", name="scores")
            by_place = conv(b, x, anchors * 4, 3, norm="none", activation="", name="boxes")
            scores, count = _anchors_first(b, by_class, classes)
            parts.append((scores, _anchors_first(b, by_place, 4)[0]))
            total += count
    scores, boxes = (b.node("Concat", *column, axis=1) for column in zip(*parts, strict=True))
    labels = b.input("labels", total, dtype=TensorProto.INT64)
    with b.scope("loss"):
        by_label = b.cross_entropy(b.reshape(scores, -1, classes), b.reshape(labels, -1))
        loss = b.node("Add", by_label, _box_loss(b, boxes, total), name="total")
    return b.model(scores=(scores, (total, classes)), boxes=(boxes, (total, 4)), loss=(loss, None))


def _focal_loss(b: Builder, scores: str, total: int, classes: int) -> str:
    """Lin et al. 2017, equation 5, alpha 1/4 and gamma 2; the input "labels" has each box's class, `classes` for none."""
    labels = b.input("labels", total, dtype=TensorProto.INT64)
    wanted = b.node("OneHot", labels, b.constant(classes), b.constant(np.array([0.0, 1.0])), axis=-1)
    chance = b.node("Sigmoid", scores)
    one = b.constant(1.0)
    missed = b.node("Sub", one, wanted)
    # Binary cross-entropy of scores s and labels y: softplus(s) - s y.
    entropy = b.node("Sub", b.node("Softplus", scores), b.node("Mul", scores, wanted))
    wrong = b.node("Abs", b.node("Sub", wanted, chance))
    weight = b.node("Add", b.node("Mul", wanted, b.constant(0.25)), b.node("Mul", missed, b.constant(0.75)))
    focused = b.node("Mul", b.node("Mul", entropy, b.node("Mul", wrong, wrong)), weight)
    return b.node("ReduceMean", focused, keepdims=0)


def retinanet(
    *,
    image: int = 800,
    classes: int = 264,
    depth: int = 50,
    groups: int = 32,
    base_width: int = 4,
    trained_stages: int = 3,
    seed: int | None = None,
    name: str = "retinanet",
) -> ModelProto:
    """RetinaNet: input "x" [batch, 3, image, image]; outputs "scores", "boxes" and "loss" as :func:`ssd_resnet34`.

    Nine boxes per position of five maps (120,087 at 800), heads of four convolutions shared by all maps, focal loss.
    BatchNormalizations stay as they were pretrained; of the backbone's four stages the last `trained_stages` are
    trained (the stem with the fifth).
    """
    need("image", image, image >= 128, "at least 128")
    b = Builder(name=name, seed=seed)
    norm: Norm = "frozen"
    x = stem(b, picture(b, 3, image, image), norm=norm, frozen=trained_stages < 5)
    found = stages(
        b, x, depth=depth, groups=groups, base_width=base_width, norm=norm, frozen=4 - min(trained_stages, 4)
    )
    maps = pyramid(b, found[1:])
    for level in (3, 4):
        last = maps[-1]._replace(tensor=b.node("Relu", maps[-1].tensor)) if level == 4 else maps[-1]
        maps.append(conv(b, last, 256, 3, stride=2, norm="none", activation="", name=f"pyramid.{level}"))
    columns, total = [], 0
    for part, width in (("scores", classes), ("boxes", 4)):
        tower = _shared_head(b, part, maps, 9 * width)
        flat = [_anchors_first(b, x, width) for x in tower]
        columns.append(b.node("Concat", *(t for t, _ in flat), axis=1))
        total = sum(n for _, n in flat)
    scores, boxes = columns
    with b.scope("loss"):
        loss = b.node("Add", _focal_loss(b, scores, total, classes), _box_loss(b, boxes, total), name="total")
    return b.model(scores=(scores, (total, classes)), boxes=(boxes, (total, 4)), loss=(loss, None))


def _shared_head(b: Builder, part: str, maps: list[Map], filters: int) -> list[Map]:
    """Four convolutions of 256 and one of `filters`, of the same weights on every map."""
    results = list(maps)
    for layer in range(5):
        with b.scope(f"{part}.{layer}"):
            out = 256 if layer < 4 else filters
            weight = b.weight((out, 256, 3, 3), fan_in=256 * 9)
            bias = b.weight((out,), name="bias", said=True)
            for level, x in enumerate(results):
                y = b.node("Conv", x.tensor, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
                results[level] = Map(b.node("Relu", y) if layer < 4 else y, out, x.size)
    return results
