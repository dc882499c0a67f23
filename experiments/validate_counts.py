"""Holds FLOPs that :mod:`hpdlf.models.onnxpp.count` counts against what XLA counts of the same graphs.

    python -m hpdlf.experiments.validate_counts FOLDER [--only resnet] [--batch 2] [--training]

Every ONNX file in FOLDER is imported without its weights (symbolic dimensions other than the batch get --extent), lowered, and
counted by XLA before it optimises anything. XLA leaves out the taps of a window that lie on padding, where published
counts, and ours, have them: the third figure is ours without them. With --training forward and backward pass are counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer

from ..errors import HpdlfError, ModelError
from ..models.cost.lowerings import DIRECTIONS
from ..models.onnxpp import Graph, Onnxpp, import_model, load_values, work
from ..models.onnxpp.graph import Operator

if TYPE_CHECKING:
    from ..exec.segments import Segment

__all__ = ["Counted", "compare", "counted", "on_padding", "xla_flops"]


class Counted(NamedTuple):
    """FLOPs of one graph: ours, ours without taps on padding, and XLA's."""

    name: str
    ours: int
    without_padding: int
    xla: float

    @property
    def ratio(self) -> float:
        """What ours without padding is of XLA's."""
        return self.without_padding / self.xla if self.xla else float("nan")


def on_padding(operator: Operator, graph: Graph, batch: int) -> int:
    """FLOPs of a convolution that are spent on padding: 2 per tap of a window that lies outside the input."""
    from ..models.onnxpp.windows import window_of

    if operator.op_type != "Conv":
        return 0
    x, w = (graph.tensors[name].dims(batch) for name in operator.inputs[:2])
    window = window_of(operator, x[2:], operator.attributes.get("kernel_shape") or w[2:])
    inside, every = 1, 1
    for i, size in enumerate(x[2:]):
        first = np.arange(window.output[i]) * window.strides[i] - window.pads[i][0]
        at = first[:, None] + np.arange(window.kernel[i]) * window.dilations[i]
        inside *= int(((at >= 0) & (at < size)).sum())
        every *= at.size
    return 2 * batch * w[0] * w[1] * (every - inside)


def counted(name: str, model: Onnxpp, *, batch: int, training: bool) -> Counted:
    """One model's figures for `batch` samples; with `training` of a step's forward and backward pass."""
    graph = model.graph
    ours = padding = 0
    for operator in graph.operators:
        ours += work(operator, graph, batch=batch, phase="forward").flops
        padding += on_padding(operator, graph, batch)
        if training:
            ours += work(operator, graph, batch=batch, phase="backward").flops
            padding += on_padding(operator, graph, batch) * _gradients(operator, graph)
    return Counted(name, ours, ours - padding, xla_flops(model, batch=batch, training=training))


def _gradients(operator: Operator, graph: Graph) -> int:
    """How many of a convolution's operands get a gradient: data, kernel, both or none."""
    return sum(n not in graph.fixed or n in graph.trainable for n in operator.inputs[:2])


def xla_flops(model: Onnxpp, *, batch: int, training: bool) -> float:
    """What XLA counts of the graph as we lower it, convolutions in its own way, before its optimisations."""
    import jax

    from ..exec.operators import step_context

    graph = model.graph
    segment = _segment(model, training=training)

    def like(names: Any) -> dict[str, Any]:
        kinds = {name: graph.tensors[name] for name in names}
        return {
            n: jax.ShapeDtypeStruct(t.dims(batch), jax.dtypes.canonicalize_dtype(t.dtype)) for n, t in kinds.items()
        }

    constants = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in segment.constants.items()}
    context = step_context(seed=0, step=0, samples=np.arange(batch), training=training)
    given = (constants, like(segment.parameters), like(segment.state), like(segment.inputs), context)
    compiled: Any = segment._compiled["forward_backward" if training else "forward"]
    cotangents = ({graph.loss: np.float32(1)},) if training else ()
    costs: Mapping[str, float] | None = compiled.lower(*given, *cotangents).cost_analysis()
    if not costs or "flops" not in costs:
        raise ModelError(f"XLA counts nothing of {graph.name!r}")
    return float(costs["flops"])


def _segment(model: Onnxpp, *, training: bool) -> Segment:
    from ..exec.segments import build_segment

    # Convolutions in XLA's own way: others multiply less (Winograd's tiles) or on padding too (copied windows).
    own: dict[str, str] = dict.fromkeys(DIRECTIONS, "xla")
    operators = tuple(replace(o, lowering=own) if o.family == "conv" else o for o in model.graph.operators)
    graph = replace(model.graph, operators=operators)
    constants = {}
    for name in graph.constants:
        try:
            constants.update(load_values(model, [name]))
        except ModelError:  # weights that are not here: zeros cost the same
            constants[name] = np.zeros(graph.tensors[name].dims(1), graph.tensors[name].dtype)
    loss = [graph.loss] if graph.loss else []
    outputs = loss if training else [*graph.outputs, *loss]
    inputs = [*graph.inputs, *graph.targets]
    return build_segment(graph, [o.name for o in graph.operators], inputs, outputs, constants)


def _imported(path: Path, *, extent: int, training: bool) -> Onnxpp:
    import onnx

    proto = onnx.load(path, load_external_data=False)
    symbols = {
        dim.dim_param or f"{value.name}:{axis}"
        for value in proto.graph.input
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if not dim.dim_value and axis
    }
    loss = "softmax_xent" if training else None
    return import_model(path, loss=loss, without_weights=True, bind=dict.fromkeys(symbols, extent))


def compare(folder: Path, *, only: str, batch: int, extent: int, training: bool) -> list[Counted | tuple[str, str]]:
    """Figures of every graph in `folder`; (name, why) of those that have none."""
    found: list[Counted | tuple[str, str]] = []
    for path in sorted(folder.glob("*.onnx")):
        if only not in path.name:
            continue
        try:
            model = _imported(path, extent=extent, training=training)
            found.append(counted(path.stem, model, batch=batch, training=training))
        except HpdlfError as error:
            found.append((path.stem, str(error).partition("\n")[0]))
    return found


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of ONNX files.")],
    only: Annotated[str, typer.Option(help="Only files whose name has this in it.")] = "",
    batch: Annotated[int, typer.Option(help="Samples.")] = 2,
    extent: Annotated[int, typer.Option(help="The size of symbolic dimensions other than the batch.")] = 128,
    training: Annotated[bool, typer.Option("--training", help="Forward and backward pass of a training step.")] = False,
) -> None:
    """Holds our count of FLOPs against XLA's."""
    warnings.simplefilter("ignore")
    print(f"{'graph':36s} {'ours, GFLOP':>12s} {'on padding':>11s} {'XLA':>10s} {'ratio':>7s}")
    for row in compare(folder, only=only, batch=batch, extent=extent, training=training):
        if isinstance(row, Counted):
            padding = row.ours / row.without_padding - 1 if row.without_padding else 0.0
            print(f"{row.name:36s} {row.ours / 1e9:12.3f} {padding:11.1%} {row.xla / 1e9:10.3f} {row.ratio:7.3f}")
        else:
            print(f"{row[0]:36s} {row[1][:90]}")


if __name__ == "__main__":
    typer.run(main)
