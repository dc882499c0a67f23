"""The part of the micro-benchmarks that computes: operators in JAX on one core, in a process of its own.

Run as ``python -m hpdlf.exec.microbenchmarks_compute`` with the environment of
:func:`hpdlf.exec.microbenchmarks_processes.one_core_environment`. Prints one JSON object per line, of the kind
"progress", "operator", "dispatch", "triad" or "skipped". Times include one dispatch, because that is how a call is
paid for; ``launch_overhead`` of the profile says how much that is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["OPERATORS", "OperatorCase", "sample", "summarise"]


class OperatorCase(NamedTuple):
    """One operator to time: its family, ONNX type, phase, shape and type."""

    family: str
    op_type: str
    phase: str
    shape: dict[str, int]
    dtype: str = "float32"


def _matmul(m: int, n: int, k: int, dtype: str = "float32", phase: str = "forward") -> OperatorCase:
    return OperatorCase("matmul", "MatMul", phase, {"m": m, "n": n, "k": k}, dtype)


def _conv(n: int, hw: int, c: int, k: int, r: int, stride: int = 1, phase: str = "forward") -> OperatorCase:
    shape = {"n": n, "h": hw, "w": hw, "c": c, "k": k, "r": r, "s": r, "stride": stride, "pad": r // 2}
    return OperatorCase("conv", "Conv", phase, shape)


# The first of each family are the most telling, since a small budget may not reach the last. The shapes are those of a
# perceptron, of a small network on 8x8 images and of the stages of a ResNet.
OPERATORS: tuple[OperatorCase, ...] = (
    _matmul(512, 512, 512),
    _conv(8, 28, 128, 128, 3),
    OperatorCase("elementwise", "Add", "forward", {"elements": 1 << 20}),
    _matmul(1024, 1024, 1024),
    _matmul(512, 512, 512, "float64"),
    _matmul(512, 512, 512, "bfloat16"),
    OperatorCase("normalisation", "BatchNormalization", "forward", {"n": 8, "h": 28, "w": 28, "c": 128}),
    OperatorCase("pooling", "MaxPool", "forward", {"n": 8, "h": 56, "w": 56, "c": 64, "r": 2, "stride": 2}),
    OperatorCase("softmax", "Softmax", "forward", {"rows": 256, "columns": 1000}),
    OperatorCase("reduction", "ReduceMean", "forward", {"rows": 1024, "columns": 1024}),
    OperatorCase("movement", "Transpose", "forward", {"rows": 1024, "columns": 1024}),
    _matmul(256, 2048, 2048),
    _matmul(256, 2048, 2048, phase="backward_input"),
    _matmul(256, 2048, 2048, phase="backward_weight"),
    _conv(8, 28, 128, 128, 3, phase="backward_input"),
    _conv(8, 28, 128, 128, 3, phase="backward_weight"),
    *(_matmul(n, n, n) for n in (64, 128, 256, 2048)),
    _matmul(1024, 1024, 1024, "float64"),
    _matmul(32, 2048, 2048),
    _matmul(64, 10, 1024),
    _matmul(8, 1000, 2048),
    _conv(32, 8, 1, 16, 3),
    _conv(32, 8, 16, 32, 3),
    _conv(32, 8, 16, 32, 3, phase="backward_weight"),
    _conv(4, 56, 64, 64, 3),
    _conv(4, 56, 64, 256, 1),
    _conv(8, 14, 256, 256, 3),
    _conv(8, 7, 512, 512, 3),
    _conv(8, 14, 1024, 256, 1),
    _conv(4, 56, 64, 128, 3, 2),
    _conv(2, 224, 3, 64, 7, 2),
    _conv(4, 56, 64, 64, 3, phase="backward_weight"),
    _conv(8, 14, 256, 256, 3, phase="backward_input"),
    OperatorCase("elementwise", "Relu", "forward", {"elements": 1 << 20}),
    OperatorCase("elementwise", "Sigmoid", "forward", {"elements": 1 << 20}),
    OperatorCase("elementwise", "Add", "forward", {"elements": 1 << 14}),
    OperatorCase("elementwise", "Add", "forward", {"elements": 1 << 24}),
    OperatorCase("elementwise", "Relu", "forward", {"elements": 1 << 24}),
)


def sample(
    call: Callable[[], Any], *, seconds: float, least: int = 3, most: int = 200, group_s: float = 2e-4
) -> list[float]:
    """Times of `call` in seconds, for about `seconds`; calls shorter than `group_s` are timed in groups."""
    call()
    start = time.perf_counter()
    call()
    group = max(1, min(200, math.ceil(group_s / max(time.perf_counter() - start, 1e-7))))
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        start = time.perf_counter()
        for _ in range(group):
            call()
        times.append((time.perf_counter() - start) / group)
    return times


def summarise(times: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, fastest, and how many took over twice the median (other work on the machine).

    >>> summarise([1.0, 1.0, 1.0, 5.0])["outliers"]
    1
    """
    ordered = sorted(times)
    last = len(ordered) - 1

    def at(share: float) -> float:
        place = share * last
        below = math.floor(place)
        above = min(below + 1, last)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    median = at(0.5)
    return {
        "seconds": median,
        "low_s": at(0.1),
        "high_s": at(0.9),
        "fastest_s": ordered[0],
        "repeats": len(ordered),
        "outliers": sum(t > 2 * median for t in ordered),
    }


def work(case: OperatorCase) -> tuple[float, float]:
    """FLOPs and bytes (each input read once, each output written once) of a case; a multiply-add is two FLOPs."""
    shape, size = case.shape, {"float64": 8, "float32": 4, "bfloat16": 2}[case.dtype]
    if case.family == "matmul":
        m, n, k = shape["m"], shape["n"], shape["k"]
        return 2.0 * m * n * k, float(size * (m * k + k * n + m * n))
    if case.family == "conv":
        n, h, w, c, k, r, s = (shape[key] for key in ("n", "h", "w", "c", "k", "r", "s"))
        out = n * _out(h, r, shape) * _out(w, s, shape)
        return 2.0 * out * k * c * r * s, float(size * (n * h * w * c + r * s * c * k + out * k))
    if case.family == "pooling":
        n, h, w, c, r = (shape[key] for key in ("n", "h", "w", "c", "r"))
        out = n * (h // shape["stride"]) * (w // shape["stride"]) * c
        return float(out * r * r), float(size * (n * h * w * c + out))
    elements = math.prod(shape.values())
    per_element, streams = {
        "Add": (1, 3),
        "Relu": (1, 2),
        "Sigmoid": (4, 2),
        "BatchNormalization": (7, 2),
        "Softmax": (5, 2),
        "ReduceMean": (1, 1),
        "Transpose": (0, 2),
    }[case.op_type]
    return float(per_element * elements), float(size * streams * elements)


def _out(dim: int, kernel: int, shape: dict[str, int]) -> int:
    return (dim + 2 * shape["pad"] - kernel) // shape["stride"] + 1


def build(case: OperatorCase) -> Callable[[], Any]:
    """A call of no arguments that runs the case once, compiled, and waits for the result."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    shape = case.shape
    generator = np.random.default_rng(0)

    def array(*dims: int) -> Any:
        return jnp.asarray(generator.standard_normal(dims, dtype=np.float32), dtype=case.dtype)

    function: Any
    arguments: tuple[Any, ...]
    if case.family == "matmul":
        m, n, k = shape["m"], shape["n"], shape["k"]
        # A backward product has the same sizes and reads one operand transposed, as the gradients of y = x w do.
        if case.phase == "backward_input":
            function, arguments = lambda g, w: g @ w.T, (array(m, k), array(n, k))
        elif case.phase == "backward_weight":
            function, arguments = lambda x, g: x.T @ g, (array(k, m), array(k, n))
        else:
            function, arguments = jnp.matmul, (array(m, k), array(k, n))
    elif case.family == "conv":
        function, arguments = _build_conv(case, array)
    elif case.family == "pooling":
        window, strides = (1, shape["r"], shape["r"], 1), (1, shape["stride"], shape["stride"], 1)
        function = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")  # noqa: E731
        arguments = (array(shape["n"], shape["h"], shape["w"], shape["c"]),)
    else:
        dims = (shape["elements"],) if "elements" in shape else tuple(shape.values())
        function = {
            "Add": lambda x, y: x + y,
            "Relu": lambda x: jnp.maximum(x, 0),
            "Sigmoid": jax.nn.sigmoid,
            "BatchNormalization": lambda x: (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5),
            "Softmax": lambda x: jax.nn.softmax(x, axis=-1),
            "ReduceMean": lambda x: x.mean(axis=-1),
            "Transpose": lambda x: x.T + 0,
        }[case.op_type]
        arguments = tuple(array(*dims) for _ in range(2 if case.op_type == "Add" else 1))
    compiled = jax.jit(function)
    return lambda: compiled(*arguments).block_until_ready()


def _build_conv(case: OperatorCase, array: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import jax

    shape = case.shape
    pad = ((shape["pad"], shape["pad"]),) * 2
    stride = (shape["stride"],) * 2

    def forward(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, stride, pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x = array(shape["n"], shape["h"], shape["w"], shape["c"])
    w = array(shape["r"], shape["s"], shape["c"], shape["k"])
    if case.phase == "forward":
        return forward, (x, w)
    out = array(shape["n"], _out(shape["h"], shape["r"], shape), _out(shape["w"], shape["s"], shape), shape["k"])
    which = 0 if case.phase == "backward_input" else 1
    return lambda a, b, g: jax.vjp(forward, a, b)[1](g)[which], (x, w, out)


def operators(budget_s: float) -> Iterator[dict[str, Any]]:
    """Time the operators within `budget_s`, the most telling first; those that no time is left for are named."""
    start = time.perf_counter()
    for index, case in enumerate(OPERATORS):
        left = budget_s - (time.perf_counter() - start)
        text = f"{case.op_type} {case.phase} " + " ".join(f"{key}={value}" for key, value in case.shape.items())
        # The first three are what a profile cannot do without.
        if left <= 0 and index >= 3:
            names = ", ".join(sorted({c.op_type for c in OPERATORS[index:]}))
            yield {
                "kind": "skipped",
                "what": f"{len(OPERATORS) - index} operators ({names})",
                "reason": "the time given was used up",
            }
            return
        yield {"kind": "progress", "text": text, "done": index, "total": len(OPERATORS)}
        call = build(case)
        times = sample(call, seconds=min(1.5, max(0.05, 0.5 * left / (len(OPERATORS) - index))))
        flops, nbytes = work(case)
        yield {"kind": "operator", **case._asdict(), **summarise(times), "flops": flops, "bytes": nbytes}


def dispatch(seconds: float) -> dict[str, Any]:
    """Time of a jitted call that computes next to nothing."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(lambda x: x + 1)
    one = jnp.zeros((1,))
    times = sample(lambda: compiled(one).block_until_ready(), seconds=seconds, most=2000, group_s=2e-4)
    return {"kind": "dispatch", **summarise(times)}


def triad(seconds: float, begin_at: float) -> dict[str, Any]:
    """Memory bandwidth in bytes per second: a = b + s c on arrays far larger than a core's share of the caches.

    `begin_at` (time.time()) lets several processes start together. NumPy does it in two passes: the multiplication
    reads c and writes a, the addition reads a and b and writes a, 40 bytes per element of float64; that a write first
    reads its line is not counted.
    """
    import numpy as np

    elements = 1 << 22
    a, b, c = np.zeros(elements), np.ones(elements), np.ones(elements)

    def call() -> None:
        np.multiply(c, 3.0, out=a)
        np.add(a, b, out=a)

    call()
    time.sleep(max(0.0, begin_at - time.time()))
    times = sample(call, seconds=seconds, most=10_000)
    return {"kind": "triad", "bytes": 40.0 * elements, **summarise(times)}


def main(arguments: list[str] | None = None) -> None:
    """Run one group of measurements on one core and print what was found, one JSON object a line."""
    parser = argparse.ArgumentParser(description="micro-benchmarks of one core")
    parser.add_argument("group", choices=("operators", "triad", "busy"))
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--budget-s", type=float, required=True)
    parser.add_argument("--begin-at", type=float, default=0.0)
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    if options.group == "triad":
        _say(triad(options.budget_s, options.begin_at))
    elif options.group == "busy":
        end = time.perf_counter() + options.budget_s
        call = build(OPERATORS[0])
        while time.perf_counter() < end:
            call()
    else:
        import jax

        jax.config.update("jax_enable_x64", True)
        _say({"kind": "progress", "text": "dispatch of a jitted call", "done": 0, "total": len(OPERATORS)})
        _say(dispatch(min(1.0, 0.1 * options.budget_s)))
        for message in operators(0.9 * options.budget_s):
            _say(message)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
