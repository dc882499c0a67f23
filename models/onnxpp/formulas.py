"""FLOPs of operators that are neither products nor element by element, from the shapes of operands and results.

Each is the textbook algorithm's count, at its most where values decide. A comparison counts as one operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil, log2, prod
from typing import Any

from .graph import Operator, Tensor

__all__ = ["FORMULAS", "trips"]

Shape = tuple[int, ...]
Formula = Callable[[Operator, Sequence[Shape], Sequence[Shape]], int]
FORMULAS: dict[str, Formula] = {}


def counts(*op_types: str) -> Callable[[Formula], Formula]:
    """Registers a formula: (operator, shapes of its operands, shapes of its results) -> FLOPs of the forward pass."""

    def register(formula: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(op_types, formula))
        return formula

    return register


def trips(operator: Operator, tensors: Mapping[str, Tensor], batch: int) -> int:
    """How often the body of a Loop, Scan or SequenceMap runs at most; 1 where nobody knows."""
    if operator.trips is not None:
        return operator.trips.at(batch)
    if operator.op_type == "Scan":
        body = operator.attributes["body"]
        own = operator.inputs[: len(operator.inputs) - len(operator.captured)]
        slices = int(operator.attributes.get("num_scan_inputs", 1))
        axes = operator.attributes.get("scan_input_axes") or (0,) * slices
        if own and len(body.inputs) >= slices:
            return tensors[own[-slices]].dims(batch)[axes[0]]
    return 1


def _transform(points: int) -> int:
    """5 n log2 n: the split radix-2 FFT of n complex points (Cooley and Tukey 1965, as FFTW's benchmarks count)."""
    return ceil(5 * points * log2(points)) if points > 1 else 0


@counts("DFT")
def _dft(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    shape = operands[0]
    axis = int(operator.attributes.get("axis", 1 if len(operands) < 3 else -2)) % len(shape)
    points = max(shape[axis], results[0][axis])
    return prod(shape[:-1]) // max(shape[axis], 1) * _transform(points)


@counts("STFT")
def _stft(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Each frame: times the window, transformed."""
    batch, frames, frequencies, _ = results[0]
    points = 2 * (frequencies - 1) if operator.attributes.get("onesided", 1) else frequencies
    return batch * frames * (_transform(points) + points)


@counts("Det")
def _determinant(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """2/3 n³: elimination (Golub and Van Loan, "Matrix computations", section 3.2)."""
    n = operands[0][-1]
    return prod(operands[0][:-2]) * (2 * n**3 // 3)


@counts("GridSample")
def _grid_sample(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """For each result the taps around it, a multiply-add each; for each point its place and the taps' weights."""
    mode, rank = str(operator.attributes.get("mode", "linear")), len(operands[0]) - 2
    side = {"nearest": 1, "cubic": 4, "bicubic": 4}.get(mode, 2)
    taps = side**rank
    points = prod(results[0]) // max(results[0][1], 1)
    return (0 if side == 1 else 2 * taps * prod(results[0])) + points * (4 * rank + (taps if side > 1 else 0))


@counts("Resize", "Upsample")
def _resize(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Axis by axis: linear takes a + t (b - a), cubic four multiply-adds; nearest moves data."""
    each = {"linear": 3, "bilinear": 3, "cubic": 8}.get(str(operator.attributes.get("mode", "nearest")), 0)
    done, total = list(operands[0]), 0
    for axis, (before, after) in enumerate(zip(operands[0], results[0], strict=True)):
        if before != after:
            done[axis] = after
            total += each * prod(done)
    return total


@counts("RoiAlign")
def _roi_align(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Each result averages samples of four taps; without a given ratio as many as the whole map would have per bin."""
    ratio = int(operator.attributes.get("sampling_ratio", 0))
    height, width = operands[0][2:4]
    per_bin = ratio**2 if ratio else ceil(height / results[0][2]) * ceil(width / results[0][3])
    return prod(results[0]) * per_bin * (2 * 4 + 1)


@counts("MaxRoiPool")
def _max_roi_pool(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """At most every region is the whole map."""
    return results[0][0] * prod(operands[0][1:])


@counts("NonMaxSuppression")
def _non_max_suppression(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Every pair of boxes of every class at most: an overlap takes 4 comparisons and 8 operations."""
    batch, boxes, _ = operands[0]
    return batch * operands[1][1] * (boxes * (boxes - 1) // 2) * 12


@counts("TopK")
def _top_k(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """A heap of k elements that every element may enter: n log2 k comparisons."""
    axis = int(operator.attributes.get("axis", -1))
    kept = max(results[0][axis], 1)
    return prod(operands[0]) * max(ceil(log2(kept)), 1)


@counts("DeformConv")
def _deform_conv(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """The convolution's multiply-adds, and four taps for each sample that it reads."""
    weight = operands[1]
    samples = prod(results[0]) // max(results[0][1], 1) * operands[0][1] * prod(weight[2:])
    return 2 * prod(results[0]) * prod(weight[1:]) + 8 * samples


@counts("LinearClassifier", "LinearRegressor")
def _linear(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """A product with the coefficients, and the post-transform as four operations a score."""
    rows = operands[0][0] if len(operands[0]) > 1 else 1
    return rows * 2 * len(operator.attributes["coefficients"]) + 4 * prod(results[-1])


@counts("SVMClassifier", "SVMRegressor")
def _vectors(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """A kernel value for each support vector (a product, and five operations), then a weight each."""
    rows, features = (1, *operands[0])[-2:]
    held = operator.attributes.get("support_vectors") or operator.attributes["coefficients"]
    return rows * (2 * len(held) + 7 * (len(held) // max(features, 1)))


@counts("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
def _trees(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Each row goes down each tree: as many comparisons as a balanced tree is deep, and one addition at the leaf."""
    get: Mapping[str, Any] = operator.attributes
    rows = operands[0][0] if len(operands[0]) > 1 else 1
    if operator.op_type == "TreeEnsemble":
        roots = len(get["tree_roots"])
        sizes = [len(get["nodes_featureids"]) // max(roots, 1)] * roots
    else:
        sizes = list(Counter(get["nodes_treeids"]).values())
    return rows * sum(ceil(log2(size + 1)) + 1 for size in sizes)


@counts("Adam", "Adagrad", "Momentum")
def _update(operator: Operator, operands: Sequence[Shape], results: Sequence[Shape]) -> int:
    """Per parameter: Adam's two averages and a root, Adagrad's square and root, Momentum's one average."""
    each, per_tensor = {"Adam": (13, 4), "Adagrad": (8, 3), "Momentum": (5, 3)}[operator.op_type]
    return each * sum(prod(shape) for shape in operands[2 : 2 + (len(operands) - 2) // per_tensor])
