"""Getzner, Charpentier, Günnemann, "Accuracy is not the only metric that matters: estimating the energy consumption of
deep learning models", ICLR workshop 2023: forward passes of single layers and of whole networks on one core of a server
with two Xeon Gold 5120; the energy is that of both packages (RAPL through codecarbon).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...models.cost.operation import Operation
from .measured import read_table
from .torchvision_layers import activation, convolution, layers_of, linear, max_pool

__all__ = ["DEVICES", "FILE", "LayerEnergy", "layers"]

FILE = "getzner2023_cpu_energy/layers.csv"
# What the table calls the processor, and the profile of one of its two sockets.
DEVICES = {"Gold 5120": "Xeon-Gold-5120"}
# Outside this range RAPL's counter or its reader slipped: the quality note that comes with the table.
PLAUSIBLE_W = (60.0, 82.0)
_ACTIVATIONS = {"ReLU": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax"}


class LayerEnergy(NamedTuple):
    """One measurement: `seconds` and `joules` of a forward pass of `operations`.

    op          the module's class; of a whole network its name
    operations  one layer, or all of a network's; empty where the row does not say the shape
    network, place  of a network's layer ("vgg16", 12), place 0 for the whole; "" and None for random configurations
    run         the file of the source, and the repetition: layers of one run belong together
    """

    device: str
    op: str
    operations: tuple[Operation, ...]
    network: str
    place: int | None
    batch: int
    run: str
    seconds: float
    joules: float

    @property
    def package_w(self) -> float:
        """Mean power of both packages."""
        return self.joules / self.seconds


def layers(folder: Path) -> Iterator[LayerEnergy]:
    """All plausible measurements of the table.

    Raises:
        DataError: the file cannot be read, or columns are missing.
    """
    needed = ("file", "module", "rep", "batch", "input_size", "output_size", "image_size", "kernel_size", "in_channels",
              "out_channels", "stride", "padding", "arch_layer", "time_per_fwd_s", "cpu_energy_per_fwd_J",
              "avg_cpu_power_W", "cpu_model")  # fmt: skip
    table = read_table(folder, FILE, needed)
    if table is None:
        return
    low, high = PLAUSIBLE_W
    known: dict[tuple[str, int], tuple[Operation, ...]] = {}
    rows: Sequence[Mapping[Any, Any]] = table[list(needed)].to_dict("records")
    for row in rows:
        seconds, joules, module = row["time_per_fwd_s"], row["cpu_energy_per_fwd_J"], row["module"]
        if not (low <= row["avg_cpu_power_W"] <= high and seconds > 0 and joules > 0):
            continue
        where = row["arch_layer"]
        network, _, index = where.partition("/") if isinstance(where, str) else ("", "", "")
        batch, place, op = int(row["batch"]), None, module
        if str(row["file"]).startswith("architectures") and index.isdigit():
            place = int(index)
            if (network, batch) not in known:
                known[network, batch] = layers_of(network, batch=batch)
            every = known[network, batch]
            operations = every if place == 0 else every[place - 1 : place]
            op = f"network {network}" if place == 0 else module
        else:
            one = _configured(row)
            operations = (one,) if one is not None else ()
        yield LayerEnergy(
            device=row["cpu_model"],
            op=op,
            operations=operations,
            network=network,
            place=place,
            batch=batch,
            run=f"{row['file']} #{row['rep']}",
            seconds=float(seconds),
            joules=float(joules),
        )


def _configured(row: Mapping[Any, Any]) -> Operation | None:
    """The layer that a row describes by its own columns; None where it does not."""

    def whole(*names: str) -> list[int] | None:
        values = [row[name] for name in names]
        return None if any(v != v for v in values) else [int(v) for v in values]

    n, module = int(row["batch"]), row["module"]
    if module == "Conv2d" and (
        v := whole("in_channels", "out_channels", "image_size", "kernel_size", "stride", "padding")
    ):
        return convolution(n, *v)
    if module == "MaxPool2d" and (v := whole("in_channels", "image_size", "kernel_size", "stride", "padding")):
        return max_pool(n, *v)
    if module == "Linear" and (v := whole("input_size", "output_size")):
        return linear(n, *v)
    if module in _ACTIVATIONS and (v := whole("input_size")):
        return activation(_ACTIVATIONS[module], n, *v)
    return None
