r"""What one core spends an operation's time on, in the lowerings that the executor has for processors.

``seconds = sum over terms (theta * term)``, a term being work of one kind in seconds of a reference core that does
:data:`FLOPS_PER_S` of arithmetic and moves :data:`BYTES_PER_S`. Terms follow from how XLA computes on a processor:

* **Matrix products** (m x k) by (k x n): arithmetic, what vectors of 16 numbers waste at the edges, packing of both
  operands (mk, kn) and writing the result (mn); more for what exceeds the cache.
* **Convolutions** are such products, m the positions of all samples, k = channels x window, n the filters: over
  channels alone (window of one), over copied windows (few channels, or up to 49 positions), or by XLA's own loops; so
  is the gradient of the weights, window point by window point up to 256 positions, beyond by XLA's loops. Weights are
  turned from ONNX's layout into XLA's and back.
* **Depthwise** and transposed convolutions run in plain loops: so much an element of the result, so much a point of the
  window; the gradient by the input of a strided one steps over the zeros between, that of the weights multiplies all
  channels with all, as if it were dense.
* **Everything else** streams rows through memory: bytes, elements, more beyond the cache, and for what sums over columns
  (batch norms with channels last, gradients of biases and scales) more for long columns, which are far apart in memory.

The thetas ship as ``cpu_terms.json``, fitted by ``python -m hpdlf.experiments.fit_cpu_terms`` on micro-benchmarks of one
machine, no rows of which are kept. Another core differs by factors that :mod:`.local_times` learns.

>>> product = Operation(family="matmul", op="linear", dims=(1, 512, 512, 512), flops=2 * 512**3,
...     read_bytes=2 * 4 * 512**2, write_bytes=4 * 512**2)
>>> group, found = terms(product)
>>> group, round(found["f"], 4)
('matmul linear forward', 0.0027)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from math import log2
from pathlib import Path

from ...errors import DataError
from .operation import Operation

__all__ = ["CPU_TERMS_FILE", "CpuTerms", "generic", "lowering_of", "terms"]

CPU_TERMS_FILE = Path(__file__).with_name("cpu_terms.json")
FORMAT = "hpdlf.cpu_terms"
VERSION = 1
FLOPS_PER_S = 1e11
BYTES_PER_S = 1e10
CALL_S = 1e-6
# Of the reference core: vectors of float32, and what stays in the second-level cache.
VECTOR = 16
CACHE_BYTES = 1 << 20

Terms = dict[str, float]


def lowering_of(operation: Operation) -> str:
    """The kind of loop that a convolution is, as the micro-benchmarks that the thetas were fitted on computed it.

    The executor has faster ways since (:mod:`.lowerings`: Winograd's tiles, products of strided windows). A machine that
    measures itself (``hpdlf profile measure``) has them in :mod:`.local_times`; the shipped thetas predict too long for them.
    """
    n, c, _, r, s, p, q, _, groups = operation.dims
    if operation.op == "convtranspose":
        # Sums over few positions are unrolled.
        return "transposed few" if operation.phase == "backward_weight" and n * p * q <= 64 else "transposed"
    if groups > 1:
        return "depthwise" if groups == c else "grouped"
    if r * s == 1:
        return "matmul"
    unrolled = r * s <= 64
    if r * s * c <= 64 or (p * q <= 49 and unrolled):
        return "im2col"
    return "taps" if operation.phase == "backward_weight" and p * q <= 256 and unrolled else "xla"


def terms(operation: Operation) -> tuple[str, Terms]:
    """The group of operations that share thetas, and the terms by name, in seconds of the reference core."""
    if operation.family == "conv" and len(operation.dims) == 9:
        return _convolution(operation)
    if operation.family in ("matmul", "attention", "rnn"):
        return _product(operation)
    return _rows(operation)


def generic(group: str) -> str:
    """The group whose thetas stand in for one that was never timed: all kinds of the family in that phase.

    >>> generic("elementwise erf forward")
    'elementwise * forward'
    """
    family, _, rest = group.partition(" ")
    return f"{family} * {rest.partition(' ')[2]}"


def _beyond(amount: float, limit: float) -> float:
    """How many times `amount` doubles `limit`; 0 below it."""
    return log2(amount / limit) if amount > limit else 0.0


def _edge(n: float) -> float:
    """What the last vector adds to n."""
    return -(-n // VECTOR) * VECTOR - n


def _moved(elements: float, item: float) -> float:
    return elements * item / BYTES_PER_S


def _convolution(o: Operation) -> tuple[str, Terms]:
    n, c, k, r, s, p, q, stride, groups = o.dims
    how = lowering_of(o)
    name = f"conv {how}{' strided' if stride > 1 else ''} {o.phase}"
    positions, window = float(n * p * q), r * s
    depth, seen = c / groups * window, n * p * q * stride * stride * float(c)
    flop = 1.0 / FLOPS_PER_S * (o.item_bytes / 4)
    arithmetic = 2.0 * positions * depth * k * flop
    item = o.item_bytes
    found = {"f": arithmetic, "in": _moved(seen, item), "call": CALL_S}
    if how in ("depthwise", "grouped"):
        found |= {"out": _moved(positions * k, item), "weight": _moved(k * depth, item)}
        if o.phase == "backward_input" and stride > 1:
            found["zeros"] = _moved(seen * depth, item)
        if o.phase == "backward_weight":
            found["dense"] = 2.0 * positions * k * c * window * flop
            found["dense_weight"] = _moved(float(k * c * window), item)
        elif p * q < window:
            found["out_few"] = _moved(positions * k, item)
        return name, found
    found |= {
        "mk": _moved(positions * depth, item),
        "kn": _moved(depth * k, item),
        "mn": _moved(positions * k, item),
    }
    if how.startswith("transposed"):
        # Plain loops for the weights' gradient: slower the further apart neighbours lie.
        found["f_wide"] = arithmetic * _beyond(c, VECTOR)
        return name, found
    found |= {
        "edge_n": 2.0 * positions * depth * _edge(k) * flop,
        "edge_k": 2.0 * positions * window * _edge(c) * k * flop,
        "kn_far": _moved(depth * k, item) * _beyond(depth * k * item, CACHE_BYTES),
        "in_far": _moved(seen, item) * _beyond(seen * item, CACHE_BYTES),
        "mn_far": _moved(positions * k, item) * _beyond(positions * k * item, CACHE_BYTES),
    }
    if how == "taps":
        found["taps"] = _moved(seen * window, item)
    return name, found


def _product(o: Operation) -> tuple[str, Terms]:
    batch, m, n, k = (float(d) for d in o.dims)
    item, times = o.item_bytes, float(o.count)
    flop = times * batch / FLOPS_PER_S * (item / 4)
    return f"{o.family} {o.op} {o.phase}", {
        "f": 2.0 * m * n * k * flop,
        "edge_m": 2.0 * n * k * _edge(m) * flop,
        "edge_n": 2.0 * m * k * _edge(n) * flop,
        "thin": 2.0 * m * n * k * flop * _beyond(64.0, min(m, n, k)),
        "mk": times * _moved(batch * m * k, item),
        "kn": times * _moved(batch * k * n, item),
        "mn": times * _moved(batch * m * n, item),
        "mk_far": times * _moved(batch * m * k, item) * _beyond(batch * m * k * item, CACHE_BYTES),
        "kn_far": times * _moved(batch * k * n, item) * _beyond(batch * k * n * item, CACHE_BYTES),
        "mn_far": times * _moved(batch * m * n, item) * _beyond(batch * m * n * item, CACHE_BYTES),
        "call": times * CALL_S,
        "batch": times * batch * CALL_S * 0.1,
    }


# What sums over columns.
_COLUMNS = frozenset({"batchnormalization"})


def _rows(o: Operation) -> tuple[str, Terms]:
    rows, columns = (float(d) for d in o.dims[:2]) if len(o.dims) > 1 else (1.0, float(o.dims[0] if o.dims else 1))
    item, elements = o.item_bytes, rows * columns
    moved_bytes = o.read_bytes + o.write_bytes
    name = f"{o.family} {o.op} {o.phase}"
    if o.family == "update" and not o.own_kernel:
        name = f"{o.family} {o.op} joined"
    bytes_s, elements_s = moved_bytes / BYTES_PER_S, _moved(elements, item)
    found = {
        "bytes": bytes_s,
        "bytes_far": bytes_s * _beyond(moved_bytes, CACHE_BYTES),
        "elements": elements_s,
        "elements_far": elements_s * _beyond(elements * item, CACHE_BYTES),
        "f": o.flops / FLOPS_PER_S * (item / 4),
        "call": CALL_S,
    }
    if o.op in _COLUMNS or o.phase == "backward_weight":
        long, wide = (columns, rows) if o.op in _COLUMNS else (rows, columns)
        found |= {
            "long": elements_s * _beyond(long, 512.0),
            "wide": elements_s * _beyond(wide, 64.0),
            "long_wide": elements_s * _beyond(long, 512.0) * _beyond(wide, 64.0),
            "columns": _moved(wide, item),
        }
    return name, found


class CpuTerms:
    """Thetas by group and term. Groups that were never timed are as :func:`generic` says; None where nothing is known."""

    def __init__(self, thetas: Mapping[str, Mapping[str, float]]) -> None:
        self._thetas = thetas

    @classmethod
    def default(cls) -> CpuTerms:
        """What ships with the package.

        Raises:
            DataError: the file is missing, damaged or from a newer version.
        """
        return _read(CPU_TERMS_FILE)

    def seconds(self, operation: Operation) -> float | None:
        """Seconds on the reference core; None for a kind of operation that nothing is known of."""
        group, found = terms(operation)
        thetas = self._thetas.get(group) or self._thetas.get(generic(group))
        if thetas is None:
            return None
        return sum(thetas.get(name, 0.0) * seconds for name, seconds in found.items())


@cache
def _read(path: Path) -> CpuTerms:
    mend = "Reinstall the package, or write it anew: `python -m hpdlf.experiments.fit_cpu_terms MEASURED`."
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise DataError(f"{path}: is no file of terms of processors. {mend}")
        if data["version"] > VERSION:
            raise DataError(f"{path}: has version {data['version']}, this hpdlf reads up to {VERSION}: update hpdlf.")
        return CpuTerms({g: {n: float(v) for n, v in rows.items()} for g, rows in data["thetas"].items()})
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {mend}") from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}). {mend}") from None
