"""What importing costs: seconds and memory by number of operators, each case in a process of its own.

``python -m hpdlf.experiments.benchmark_import [NODES ...]`` writes graphs of about so many operators (400 and 10,000 by
default), imports and annotates each, and prints a line of JSON per case.

``transformer``  a decoder as exporters write it with symbolic dimensions: every reshape's target is computed by Shape,
                 Gather, Unsqueeze and Concat; masks by Range, Expand and Where; LayerNormalization and Gelu as primitives
``perceptron``   matrix product, addition and activation in turn; nothing to work out

Weights lie in a file that does not exist, as importing reads none. `wall_s` is the whole process, its start included,
`import_s` the import alone. `peak_bytes` is what the process and its children held at most, together; `bytes_per_node` is
what that is above the idle process, for each operator of the file. The idle process has its libraries loaded, and onnx's
register of operators.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NETWORKS", "main", "measure", "perceptron", "transformer", "write"]

HIDDEN, HEADS, VOCABULARY, WIDTH = 768, 12, 50_257, 4
NODES = (400, 10_000)


class _Writer:
    """Collects nodes, constants and weights; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.weights: dict[str, tuple[int, ...]] = {}

    def node(self, op_type: str, *operands: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(operands), [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def whole(self, *values: int, scalar: bool = False) -> str:
        """An int64 constant, one initializer for each value as exporters have it."""
        name = "const_" + "_".join(map(str, values)).replace("-", "m") + ("_scalar" if scalar else "")
        self.constants[name] = np.asarray(values[0] if scalar else values, np.int64)
        return name

    def number(self, value: float) -> str:
        name = f"number_{value}"
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights[name] = shape
        return name

    def extent(self, tensor: str, axis: int) -> str:
        """One dimension of a tensor, as a vector of one element."""
        found = self.node("Gather", self.node("Shape", tensor), self.whole(axis, scalar=True), axis=0)
        return self.node("Unsqueeze", found, self.whole(0))

    def norm(self, x: str) -> str:
        mean = self.node("ReduceMean", x, self.whole(-1))
        shifted = self.node("Sub", x, mean)
        variance = self.node("ReduceMean", self.node("Pow", shifted, self.number(2.0)), self.whole(-1))
        scaled = self.node("Div", shifted, self.node("Sqrt", self.node("Add", variance, self.number(1e-5))))
        return self.node("Add", self.node("Mul", scaled, self.weight(HIDDEN)), self.weight(HIDDEN))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(inputs, outputs)), self.weight(outputs))

    def heads(self, x: str) -> str:
        """[batch, tokens, hidden] as [batch, heads, tokens, hidden / heads], the target computed from the shape."""
        parts = [self.extent(x, 0), self.extent(x, 1), self.whole(HEADS), self.whole(HIDDEN // HEADS)]
        split = self.node("Reshape", x, self.node("Concat", *parts, axis=0))
        return self.node("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, x: str, mask: str) -> str:
        query, key, value = (self.heads(self.linear(x, HIDDEN, HIDDEN)) for _ in range(3))
        turned = self.node("Transpose", key, perm=[0, 1, 3, 2])
        scores = self.node("Div", self.node("MatMul", query, turned), self.number(8.0))
        seen = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        together = self.node("Transpose", self.node("MatMul", seen, value), perm=[0, 2, 1, 3])
        target = self.node("Concat", self.extent(x, 0), self.extent(x, 1), self.whole(HIDDEN), axis=0)
        return self.linear(self.node("Reshape", together, target), HIDDEN, HIDDEN)

    def gelu(self, x: str) -> str:
        inner = self.node("Erf", self.node("Div", x, self.number(1.4142)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", inner, self.number(1.0))), self.number(0.5))

    def mask(self, tokens: str) -> str:
        """Minus infinity above the diagonal, for every sample."""
        length = self.node("Squeeze", self.extent(tokens, 1))
        places = self.node("Range", self.whole(0, scalar=True), length, self.whole(1, scalar=True))
        later = self.node(
            "Greater", self.node("Unsqueeze", places, self.whole(0)), self.node("Unsqueeze", places, self.whole(1))
        )
        masked = self.node("Where", later, self.number(-1e9), self.number(0.0))
        shape = [self.extent(tokens, 0), self.whole(1), self.extent(tokens, 1), self.extent(tokens, 1)]
        return self.node("Expand", masked, self.node("Concat", *shape, axis=0))


def transformer(nodes: int) -> _Writer:
    """A decoder of about so many operators, on [batch, sequence] token numbers."""
    writer = _Writer()
    mask = writer.mask("tokens")
    x = writer.node("Gather", writer.weight(VOCABULARY, HIDDEN), "tokens")
    while len(writer.nodes) < nodes - 2:
        x = writer.node("Add", x, writer.attention(writer.norm(x), mask))
        inner = writer.gelu(writer.linear(writer.norm(x), HIDDEN, WIDTH * HIDDEN))
        x = writer.node("Add", x, writer.linear(inner, WIDTH * HIDDEN, HIDDEN))
    writer.node("MatMul", x, writer.weight(HIDDEN, VOCABULARY))
    return writer


def perceptron(nodes: int) -> _Writer:
    """Dense layers of about so many operators, on [batch, hidden] numbers."""
    writer = _Writer()
    x = "tokens"
    while len(writer.nodes) < nodes - 2:
        x = writer.node("Relu", writer.linear(x, HIDDEN, HIDDEN))
    writer.linear(x, HIDDEN, 10)
    return writer


NETWORKS = {"transformer": transformer, "perceptron": perceptron}


def write(network: str, nodes: int, path: Path) -> int:
    """Write a graph of about so many operators to `path`, without its weights; how many it has."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    writer = NETWORKS[network](nodes)
    tokens = (
        (TensorProto.INT64, ["batch", "sequence"])
        if network == "transformer"
        else (TensorProto.FLOAT, ["batch", HIDDEN])
    )
    graph = helper.make_graph(
        writer.nodes,
        network,
        [helper.make_tensor_value_info("tokens", *tokens)],
        [helper.make_tensor_value_info(writer.nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in writer.constants.items()],
    )
    for name, shape in writer.weights.items():
        tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    assert isinstance(model, onnx.ModelProto)
    return len(writer.nodes)


def _held_bytes() -> int:
    """Resident memory of this process and its children now; 0 where the system does not say."""
    import os

    total = 0
    for process in (os.getpid(), *_children(os.getpid())):
        try:
            status = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        # What a child shares with its parent counts once.
        total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("Pss:"))
    return total


def _children(process: int) -> Iterator[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:
        return
    for child in map(int, text.split()):
        yield child
        yield from _children(child)


def measure(path: Path) -> dict[str, float]:
    """Import the file at `path` in this process: seconds, and bytes at most."""
    import threading

    import onnx

    from ..models.onnxpp import import_model

    onnx.defs.get_all_schemas()  # onnx registers its operators at the first question: 9 MB, whatever the model

    before, peak, ended = _held_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, _held_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = (
        import_model(path, bind={"sequence": 128}, without_weights=True)
        if "transformer" in path.name
        else import_model(path, without_weights=True)
    )
    took = time.perf_counter() - start
    peak = max(peak, _held_bytes())
    ended.set()
    watcher.join()
    return {
        "import_s": took,
        "idle_bytes": before,
        "peak_bytes": peak,
        "operators": len(model.graph.operators),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line of JSON per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nodes", nargs="*", type=int, default=NODES, help="operators of the graphs")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside is not None:
        print(json.dumps(measure(options.inside)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for nodes in options.nodes:
            for network in NETWORKS:
                path = Path(folder) / f"{network}.onnx"
                count = write(network, nodes, path)
                start = time.perf_counter()
                run = subprocess.run(
                    [sys.executable, "-m", "hpdlf.experiments.benchmark_import", "--inside", str(path)],
                    stdout=subprocess.PIPE,
                    check=True,
                )
                wall = time.perf_counter() - start
                found = json.loads(run.stdout)
                each = (found["peak_bytes"] - found["idle_bytes"]) / count
                row = {"network": network, "nodes": count, "wall_s": wall, **found, "bytes_per_node": each}
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
