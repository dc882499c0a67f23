"""Mask R-CNN on ResNet-50 with a feature pyramid, as far as it is static (He et al. 2017, arXiv 1703.06870, figure 4).

In training, which boxes are looked at depends on the data: the region proposals are sorted and thinned out, and matched
with the objects, then a fixed number of them is drawn per picture. Here the drawn boxes come as an input; all that
computes much - backbone, pyramid, proposal head, pooling of the boxes, both heads, the losses - is the graph.
Thinning out is left out. A box is pooled from one of four maps by its size; here each map has a quarter of them.
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

from .builder import Builder, need
from .convolution import Map, conv, picture, pool
from .detection import pyramid
from .resnet import stages, stem

__all__ = ["mask_rcnn"]

_ANCHORS = 3


def mask_rcnn(
    *,
    height: int = 800,
    width: int = 1344,
    classes: int = 81,
    boxes: int = 512,
    masks: int = 128,
    trained_stages: int = 3,
    seed: int | None = None,
    name: str = "mask_rcnn",
) -> ModelProto:
    """Input "x" [batch, 3, height, width] and, for the losses, what is to be found; the output is "loss".

    boxes  drawn per picture for the box head (512 in training; 1,000 are looked at in evaluation)
    masks  of these with an object, for the mask head

    Inputs: "boxes" [batch, boxes, 4] (corners in pixels), "box_labels" [batch, boxes], "box_targets" [batch, boxes, 4],
    "mask_boxes" [batch, masks, 4], "mask_targets" [batch, masks, 28, 28], and "anchor_labels" [batch, anchors], 1 for
    an object, 0 for none and -1 for not drawn. BatchNormalizations stay as pretrained, so do the stem and the first
    4 - `trained_stages` stages. 44 million parameters with 81 classes.
    """
    need("height, width", (height, width), height % 32 == 0 and width % 32 == 0, "multiples of 32")
    for what, count in (("boxes", boxes), ("masks", masks)):
        need(what, count, count > 0 and count % 4 == 0, "a positive multiple of 4")
    b = Builder(name=name, seed=seed)
    x = stem(b, picture(b, 3, height, width), norm="frozen", frozen=True)
    maps = pyramid(b, stages(b, x, depth=50, norm="frozen", frozen=4 - min(trained_stages, 4)))
    proposed = _proposals(b, [*maps, pool(b, maps[-1], 1, stride=2)])
    losses = [proposed, _box_head(b, maps, boxes, classes), _mask_head(b, maps, masks, classes)]
    return b.model(loss=(b.node("Sum", *losses, name="loss.total"), None))


def _proposals(b: Builder, maps: list[Map]) -> str:
    """Loss of the proposal head: one convolution, then whether there is an object and where, shared by all maps."""
    with b.scope("proposals"):
        dense = [
            (b.weight((n, 256, k, k), fan_in=256 * k * k), b.weight((n,), name="bias", said=True)) for n, k in _HEADS
        ]
        columns: list[tuple[str, str]] = []
        total = 0
        for x in maps:
            seen = b.node("Relu", b.node("Conv", x.tensor, *dense[0], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
            object_, place = (b.node("Conv", seen, *w, kernel_shape=[1, 1]) for w in dense[1:])
            count = _ANCHORS * x.size[0] * x.size[1]
            columns.append((b.reshape(object_, 0, count), b.reshape(place, 0, count, 4)))
            total += count
        objects, places = (b.node("Concat", *parts, axis=1) for parts in zip(*columns, strict=True))
        labels = b.input("anchor_labels", total, dtype=TensorProto.INT64)
        wanted = b.input("anchor_targets", total, 4)
        truth = b.node("Cast", labels, to=TensorProto.FLOAT)
        entropy = b.node("Sub", b.node("Softplus", objects), b.node("Mul", objects, truth))
        drawn = b.node("Cast", b.node("GreaterOrEqual", labels, b.constant(0)), to=TensorProto.FLOAT)
        by_object = b.node("ReduceMean", b.node("Mul", entropy, drawn), keepdims=0)
        distance = b.node("Abs", b.node("Sub", places, wanted))
        by_place = b.node(
            "ReduceMean", b.node("Mul", distance, b.node("Unsqueeze", truth, b.constant([2]))), keepdims=0
        )
        return b.node("Add", by_object, by_place)


_HEADS = ((256, 3), (_ANCHORS, 1), (4 * _ANCHORS, 1))


def _pooled(b: Builder, maps: list[Map], count: int, side: int, *, name: str) -> str:
    """[batch * count, 256, side, side]: what lies under the boxes of input `name`, a quarter of them from each map."""
    boxes = b.input(name, count, 4)
    quarter = count // 4
    quarters = b.split("Split", boxes, results=4, axis=1, num_outputs=4)
    parts = []
    for level, (x, some) in enumerate(zip(maps, quarters, strict=True)):
        # The number of each box's picture: 0 for the first quarter of boxes, 1 for the next ...
        samples = b.node("Squeeze", b.node("Shape", some, start=0, end=1), b.constant([0]))
        numbers = b.node("Range", b.constant(0), samples, b.constant(1))
        numbers = b.node("Expand", b.node("Unsqueeze", numbers, b.constant([1])), b.constant([1, quarter]))
        parts.append(
            b.node(
                "RoiAlign",
                x.tensor,
                b.reshape(some, -1, 4),
                b.reshape(numbers, -1),
                output_height=side,
                output_width=side,
                sampling_ratio=2,
                spatial_scale=1.0 / (4 * 2**level),
            )
        )
    return b.node("Concat", *parts, axis=0)


def _by_quarters(b: Builder, x: str, count: int, *rest: int) -> str:
    """Targets [batch, count, ...] in the order of :func:`_pooled`: quarter by quarter, each sample by sample."""
    quarters = b.split("Split", x, results=4, axis=1, num_outputs=4)
    return b.node("Concat", *(b.reshape(q, -1, *rest) for q in quarters), axis=0)


def _box_head(b: Builder, maps: list[Map], count: int, classes: int) -> str:
    """Loss of two dense layers of 1,024, then the class of each box and where it is for each class."""
    with b.scope("box_head"):
        y = b.node("Flatten", _pooled(b, maps, count, 7, name="boxes"), axis=1)
        for number, before in ((1, 256 * 49), (2, 1024)):
            with b.scope(f"dense{number}"):
                y = b.node("Relu", b.classify(y, before, 1024))
        with b.scope("scores"):
            scores = b.classify(y, 1024, classes)
        with b.scope("places"):
            places = b.reshape(b.classify(y, 1024, 4 * classes), -1, classes, 4)
        labels = _by_quarters(b, b.input("box_labels", count, dtype=TensorProto.INT64), count)
        wanted = _by_quarters(b, b.input("box_targets", count, 4), count, 4)
        own = b.node("GatherND", places, b.node("Unsqueeze", labels, b.constant([1])), batch_dims=1)
        by_place = b.node("ReduceMean", b.node("Abs", b.node("Sub", own, wanted)), keepdims=0)
        return b.node("Add", b.cross_entropy(scores, labels), by_place)


def _mask_head(b: Builder, maps: list[Map], count: int, classes: int) -> str:
    """Loss of four convolutions and a transposed one to 28 x 28, then a mask for each class."""
    with b.scope("mask_head"):
        x = Map(_pooled(b, maps, count, 14, name="mask_boxes"), 256, (14, 14))
        for number in range(4):
            x = conv(b, x, 256, 3, norm="none", name=f"conv{number + 1}")
        weight = b.weight((256, 256, 2, 2), fan_in=256)
        up = b.node(
            "ConvTranspose", x.tensor, weight, b.weight((256,), name="bias"), kernel_shape=[2, 2], strides=[2, 2]
        )
        x = Map(b.node("Relu", up), 256, (28, 28))
        x = conv(b, x, classes, 1, norm="none", activation="", name="masks")
        labels = _by_quarters(b, b.input("mask_labels", count, dtype=TensorProto.INT64), count)
        own = b.node("GatherND", x.tensor, b.node("Unsqueeze", labels, b.constant([1])), batch_dims=1)
        wanted = _by_quarters(b, b.input("mask_targets", count, 28, 28), count, 28, 28)
        entropy = b.node("Sub", b.node("Softplus", own), b.node("Mul", own, wanted))
        return b.node("ReduceMean", entropy, keepdims=0)
