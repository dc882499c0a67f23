"""The layers of AlexNet and the VGG networks as torchvision builds them, for tables that name a layer only by its place
("vgg16/12": the twelfth module).

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014; Simonyan and Zisserman, "Very deep
convolutional networks for large-scale image recognition", 2014, configurations A, B, D and E.

>>> [layer.op for layer in layers_of("alexnet", batch=1)[:3]], len(layers_of("vgg16", batch=1))
(['conv', 'relu_inplace', 'maxpool'], 39)
>>> layers_of("resnet18", batch=1)
()
"""

from __future__ import annotations

from collections.abc import Iterator

from ...models.cost.operation import Operation

__all__ = ["activation", "adaptive_pool", "convolution", "dropout", "layers_of", "linear", "max_pool"]

_WORD = 4.0
_VGG = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_VGG_WIDTHS = (64, 128, 256, 512, 512)
# (filters, kernel, stride, padding), and whether max-pooling 3/2 follows.
_ALEXNET = (((64, 11, 4, 2), True), ((192, 5, 1, 2), True), ((384, 3, 1, 1), False), ((256, 3, 1, 1), False),
            ((256, 3, 1, 1), True))  # fmt: skip


def convolution(n: int, c: int, k: int, size: int, kernel: int, stride: int, padding: int) -> Operation | None:
    """A square convolution of images of `size`; None where no pixel comes out."""
    out = (size + 2 * padding - kernel) // stride + 1
    if out < 1:
        return None
    weights, results = c * k * kernel**2, n * k * out**2
    return Operation(
        family="conv", op="conv", dims=(n, c, k, kernel, kernel, out, out, stride, 1),
        flops=2.0 * results * c * kernel**2, read_bytes=_WORD * (n * c * size**2 + weights), write_bytes=_WORD * results,
    )  # fmt: skip


def linear(n: int, inputs: int, outputs: int) -> Operation:
    """A fully connected layer."""
    return Operation(
        family="matmul", op="linear", dims=(1, n, outputs, inputs), flops=2.0 * n * inputs * outputs,
        read_bytes=_WORD * (n * inputs + inputs * outputs), write_bytes=_WORD * n * outputs,
    )  # fmt: skip


def max_pool(n: int, c: int, size: int, kernel: int, stride: int, padding: int) -> Operation | None:
    """Square max-pooling; None where no pixel comes out."""
    out = (size + 2 * padding - kernel) // stride + 1
    if out < 1:
        return None
    results = n * c * out**2
    return Operation(
        family="pooling", op="maxpool", dims=(n * c, size**2), flops=float(results * kernel**2),
        read_bytes=_WORD * n * c * size**2, write_bytes=_WORD * results,
    )  # fmt: skip


def adaptive_pool(n: int, c: int, size: int, out: int) -> Operation:
    """The mean over windows such that `out` x `out` pixels remain."""
    elements = n * c * size**2
    return Operation(
        family="pooling", op="adaptive_avgpool", dims=(n * c, size**2), flops=float(elements),
        read_bytes=_WORD * elements, write_bytes=_WORD * n * c * out**2,
    )  # fmt: skip


def activation(op: str, n: int, width: int) -> Operation:
    """ReLU, sigmoid, tanh or softmax over `n` rows of `width` ("relu_inplace" overwrites its operand)."""
    elements = float(n) * width
    return Operation(
        family="softmax" if op == "softmax" else "elementwise", op=op, dims=(n, width), flops=elements,
        read_bytes=_WORD * elements, write_bytes=_WORD * elements,
    )  # fmt: skip


def dropout(n: int, width: int) -> Operation:
    """Dropout when nothing is trained: it hands its operand on."""
    return Operation(family="elementwise", op="dropout", dims=(n, width), flops=0.0, read_bytes=0.0, write_bytes=0.0)


def layers_of(network: str, *, batch: int) -> tuple[Operation, ...]:
    """The modules of `network` in order, for images of 224 x 224; empty for a network that is not known here."""
    if network != "alexnet" and network not in _VGG:
        return ()
    return tuple(_layers(network, batch))


def _layers(network: str, n: int) -> Iterator[Operation]:
    channels, size = 3, 224
    if network == "alexnet":
        features, pools, last = list(_ALEXNET), (3, 2), 6
    else:
        blocks = zip(_VGG_WIDTHS, _VGG[network], strict=True)
        features = [((w, 3, 1, 1), i == depth - 1) for w, depth in blocks for i in range(depth)]
        pools, last = (2, 2), 7
    for (filters, kernel, stride, padding), pooled in features:
        layer = convolution(n, channels, filters, size, kernel, stride, padding)
        assert layer is not None, "images of 224 leave pixels in every layer"
        yield layer
        channels, size = filters, layer.dim("p")
        yield activation("relu_inplace", n, channels * size**2)
        if pooled:
            pool = max_pool(n, channels, size, *pools, 0)
            assert pool is not None, "images of 224 leave pixels in every layer"
            yield pool
            size = (size - pools[0]) // pools[1] + 1
    yield adaptive_pool(n, channels, size, last)
    widths = (channels * last**2, 4096, 4096, 1000)
    for i in range(3):
        if network == "alexnet" and i < 2:
            yield dropout(n, widths[i])
        yield linear(n, widths[i], widths[i + 1])
        if i < 2:
            yield activation("relu_inplace", n, widths[i + 1])
            if network != "alexnet":
                yield dropout(n, widths[i + 1])
