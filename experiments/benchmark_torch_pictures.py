"""The zoo's convolutional networks as PyTorch modules, for the benchmark's baselines.

Layers are made in the zoo's order, so that weights can be handed over one after the other. PyTorch is an optional part of the
installation: nothing of it is imported before a network is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..models.zoo.mobilenet import EPSILON, MOBILENET_V3
from ..models.zoo.resnet import BLOCKS

__all__ = ["PICTURES"]


def _conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: str = "ReLU",
    eps: float = 1e-5,
) -> Any:
    """Convolution, normalisation, and an activation in place."""
    from torch import nn

    parts: list[Any] = [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]
    if activation:
        parts.append(getattr(nn, activation)(inplace=True))
    return nn.Sequential(*parts)


def _resnet(*, depth: int = 50, image: int = 224, classes: int = 1000) -> Any:
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, inputs: int, channels: int, stride: int) -> None:
            super().__init__()
            if depth >= 50:
                outputs = 4 * channels
                self.main = nn.Sequential(
                    _conv(inputs, channels, 1),
                    _conv(channels, channels, 3, stride=stride),
                    _conv(channels, outputs, 1, activation=""),
                )
            else:
                outputs = channels
                self.main = nn.Sequential(
                    _conv(inputs, channels, 3, stride=stride), _conv(channels, channels, 3, activation="")
                )
            changes = stride > 1 or inputs != outputs
            self.shortcut = _conv(inputs, outputs, 1, stride=stride, activation="") if changes else nn.Identity()

        def forward(self, x: Any) -> Any:
            y = self.main(x)
            y += self.shortcut(x)
            return y.relu_()

    layers = [_conv(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)]
    inputs = 64
    for stage, repeats in enumerate(BLOCKS[depth]):
        channels = 64 * 2**stage
        for block in range(repeats):
            layers.append(Block(inputs, channels, 2 if stage and block == 0 else 1))
            inputs = 4 * channels if depth >= 50 else channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _mobilenet_v3(*, size: str = "large", image: int = 224, classes: int = 1000) -> Any:
    from torch import nn
    from torch.nn import functional

    class Excite(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, channels: int, narrow: int) -> None:
            super().__init__()
            self.squeeze, self.excite = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

        def forward(self, x: Any) -> Any:
            share = self.squeeze(functional.adaptive_avg_pool2d(x, 1)).relu_()
            return x * functional.hardsigmoid(self.excite(share))

    class Block(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, inputs: int, row: tuple[int, int, int, bool, str, int]) -> None:
            super().__init__()
            kernel, wide, outputs, excited, name, stride = row
            activation = {"Relu": "ReLU", "HardSwish": "Hardswish"}[name]
            parts = [_conv(inputs, wide, 1, activation=activation, eps=EPSILON)] if wide != inputs else []
            parts.append(_conv(wide, wide, kernel, stride=stride, groups=wide, activation=activation, eps=EPSILON))
            if excited:
                quarter = wide // 4
                narrow = max(8, (quarter + 4) // 8 * 8)
                parts.append(Excite(wide, narrow + 8 * (narrow < 0.9 * quarter)))
            parts.append(_conv(wide, outputs, 1, activation="", eps=EPSILON))
            self.main = nn.Sequential(*parts)
            self.added = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            y = self.main(x)
            if self.added:
                y += x
            return y

    rows, width = MOBILENET_V3[size]
    layers = [_conv(3, 16, 3, stride=2, activation="Hardswish", eps=EPSILON)]
    inputs = 16
    for row in rows:
        layers.append(Block(inputs, row))
        inputs = row[2]
    layers += [_conv(inputs, 6 * inputs, 1, activation="Hardswish", eps=EPSILON), nn.AdaptiveAvgPool2d(1)]
    layers += [nn.Flatten(), nn.Linear(6 * inputs, width), nn.Hardswish(inplace=True), nn.Linear(width, classes)]
    return nn.Sequential(*layers)


def _unet(*, image: int = 128, channels: int = 32, levels: int = 4, classes: int = 2) -> Any:
    import torch
    from torch import nn

    def twice(inputs: int, outputs: int) -> Any:
        return nn.Sequential(_conv(inputs, outputs, 3), _conv(outputs, outputs, 3))

    class UNet(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            widths = [channels * 2**level for level in range(levels)]
            self.down = nn.ModuleList(twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
            self.halve = nn.MaxPool2d(2)
            self.bottom = twice(widths[-1], 2 * widths[-1])
            self.up = nn.ModuleList(
                nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, stride=2), twice(2 * w, w)]) for w in reversed(widths)
            )
            self.head = nn.Conv2d(channels, classes, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for layer in self.down:
                x = layer(x)
                skips.append(x)
                x = self.halve(x)
            x = self.bottom(x)
            for double, layer in self.up:
                x = layer(torch.cat([skips.pop(), double(x)], dim=1))
            return self.head(x)

    return UNet()


PICTURES: Mapping[str, Callable[..., Any]] = {"mobilenet_v3": _mobilenet_v3, "resnet": _resnet, "unet": _unet}
"""Functions of a network's hyper-parameters by its name in the zoo; each returns a module in training mode."""
