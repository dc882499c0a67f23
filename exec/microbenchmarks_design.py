"""Which chains, in which sizes, the micro-benchmarks time: a design that fills the space of those that networks use.

Every kind of chain has a share of the cases, and they take turns, so that any beginning of the list is balanced: a
short measurement leaves out the finer points, not a kind. Sizes follow an additive recurrence (multiples of powers of a
generalised golden ratio, modulo 1; Kronecker, Weyl) on logarithmic scales, rounded to sizes in use, and a point is
passed over if its work is too little or too much to time.

>>> chosen = cases(300)
>>> chosen[0].text
'product m=512 n=512 k=512 forward float32'
>>> len({case.text for case in chosen})
300
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from .microbenchmarks_chains import Case

__all__ = ["PRODUCTS", "cases"]

# As often as networks have them: powers of two most, since caches hold those worst.
CHANNELS = (
    *(
        16,
        16,
        24,
        32,
        32,
        32,
        40,
        48,
        64,
        64,
        64,
        64,
        80,
        96,
        112,
        128,
        128,
        128,
        128,
        160,
        192,
        240,
        256,
        256,
        256,
        256,
    ),
    *(320, 384, 480, 512, 512, 512, 512, 640, 768, 960, 1024, 1024, 1280, 2048),
)
POINTS = (2, 3, 4, 4, 6, 7, 7, 8, 8, 10, 12, 14, 14, 16, 16, 20, 24, 28, 28, 32, 32, 48, 56, 56, 64, 64, 96, 112, 128)
SAMPLES = (1, 2, 2, 4, 4, 8, 8, 8, 12, 16, 16, 16, 24, 32, 32, 64)
ROWS = (8, 16, 32, 64, 64, 128, 128, 197, 256, 256, 384, 512, 512, 768, 1024, 2048, 4096)
WIDTHS = (10, 16, 32, 64, 64, 100, 128, 128, 256, 256, 384, 512, 512, 768, 1000, 1024, 1024, 2048, 2048, 3072, 4096)
TOKENS = (16, 32, 49, 64, 128, 128, 197, 256, 256, 384, 512)
ACTIVATIONS = ("Relu", "Relu", "Relu", "Clip", "HardSwish", "Sigmoid", "Relu", "")
SHAPES = ("Gelu", "Relu", "", "Tanh")
MEMORY_BYTES = 24e6
DIMENSIONS = 8
# The root of x^9 = x + 1: its inverse powers are as far from being commensurable as can be in eight dimensions.
GOLDEN = 1.0850702454914508

# What the profile's peaks come from: plain products, forward alone.
PRODUCTS = tuple(
    Case(kind="product", sizes={"m": m, "n": n, "k": k}, dtype=dtype, passes="forward")
    for m, n, k, dtype in (
        (512, 512, 512, "float32"),
        (512, 512, 512, "float64"),
        (512, 512, 512, "bfloat16"),
        (1024, 1024, 1024, "float32"),
        (256, 2048, 2048, "float32"),
    )
)


def cases(most: int) -> tuple[Case, ...]:
    """The first `most` cases: products first, then all kinds in turns."""
    found = list(PRODUCTS[:most])
    seen = {case.text for case in found}
    sources = {kind: _points(kind) for kind in _KINDS}
    done = dict.fromkeys(_KINDS, 0)
    while len(found) < most:
        # The kind that is furthest behind its share.
        kind = min(_KINDS, key=lambda name: (done[name] + 0.5) / _KINDS[name][0])
        done[kind] += 1
        case = next(c for c in sources[kind] if c.text not in seen)
        seen.add(case.text)
        found.append(case)
    return tuple(found)


def _points(kind: str) -> Iterator[Case]:
    make, offset = _KINDS[kind][1], 1 + 100 * list(_KINDS).index(kind)
    for index in count(offset):
        found = make([(0.5 + index * GOLDEN ** -(d + 1)) % 1.0 for d in range(DIMENSIONS)])
        if found is not None:
            yield found


def _pick(options: Sequence[Any], u: float) -> Any:
    return options[min(int(u * len(options)), len(options) - 1)]


def _conv(r: int, stride: int, u: list[float], least: float = 2e7, most: float = 1.2e9) -> Case | None:
    n, h, c = _pick(SAMPLES, u[0]), _pick(POINTS, u[1]), _pick(CHANNELS, u[2])
    k = c if u[4] < 0.5 else _pick(CHANNELS, u[3])
    out = -(-h // stride)
    work, large = 2 * n * out * out * c * k * r * r, 4 * n * max(h * h * c, out * out * k)
    if not least < work < most or large > MEMORY_BYTES or h < r - 1 or 4 * c * k * r * r > MEMORY_BYTES:
        return None
    sizes = {"n": n, "h": h, "c": c, "k": k, "r": r, "stride": stride}
    sizes |= {"norm": int(u[5] < 0.8), "act": _pick(ACTIVATIONS, u[6])}
    return Case(kind="conv", sizes=sizes, passes=_passes(u[7]))


def _passes(u: float) -> str:
    """Mostly training; now and then the forward pass alone, or with an update."""
    return "forward" if 0.2 < u < 0.3 else "sgd" if 0.4 < u < 0.5 else "adam" if 0.6 < u < 0.65 else "training"


def _square(u: list[float]) -> Case | None:
    return _conv(3, 1, u)


def _strided(u: list[float]) -> Case | None:
    return _conv(3, 2, u)


def _pointwise(u: list[float]) -> Case | None:
    return _conv(1, 2 if u[6] < 0.15 else 1, u, least=5e6)


def _wide(u: list[float]) -> Case | None:
    return _conv(5 if u[6] < 0.7 else 7, 1, u)


def _depthwise(u: list[float]) -> Case | None:
    n, h, c, r = _pick(SAMPLES, u[0]), _pick(POINTS, u[1]), _pick(CHANNELS[:36], u[2]), 3 if u[3] < 0.65 else 5
    stride = 2 if u[4] < 0.35 else 1
    out = -(-h // stride)
    # Its gradients are computed point by point, or as if it were dense.
    if not 3e3 < n * h * h * c < 6e5 or 2 * n * out * out * c * c * r * r > 2e9 or h < r - 1:
        return None
    sizes = {"n": n, "h": h, "c": c, "k": c, "r": r, "stride": stride, "groups": c, "norm": int(u[5] < 0.8)}
    return Case(kind="conv", sizes=sizes | {"act": _pick(ACTIVATIONS, u[6])}, passes=_passes(u[7]))


def _first(u: list[float]) -> Case | None:
    n, h, k = _pick(SAMPLES, u[0]), _pick((16, 28, 32, 48, 64, 96, 128, 160, 224), u[1]), _pick(CHANNELS[:13], u[2])
    c, r, stride = 3 if u[3] < 0.8 else 1, _pick((3, 3, 5, 7), u[4]), 1 if u[5] < 0.5 else 2
    if not 3e6 < 2 * n * (h // stride) ** 2 * c * k * r * r < 6e8 or 4 * n * (h // stride) ** 2 * k > MEMORY_BYTES:
        return None
    sizes = {"n": n, "h": h, "c": c, "k": k, "r": r, "stride": stride, "norm": int(u[6] < 0.8), "first": 1}
    return Case(kind="conv", sizes=sizes, passes="training")


def _transposed(u: list[float]) -> Case | None:
    n, h, c = _pick(SAMPLES[:12], u[0]), _pick(POINTS[:21], u[1]), _pick(CHANNELS[:33], u[2])
    k, r = max(c // 2, 8) if u[3] < 0.7 else c, 2 if u[4] < 0.8 else 4
    if not 1e6 < 2 * n * h * h * c * k * r * r < 8e7 or 4 * n * h * h * r * r * k > MEMORY_BYTES:
        return None
    return Case(kind="transposed", sizes={"n": n, "h": h, "c": c, "k": k, "r": r})


def _dense(u: list[float]) -> Case | None:
    m, k, n = _pick(ROWS, u[0]), _pick(WIDTHS[1:], u[1]), _pick(WIDTHS, u[2])
    if not 2e6 < 2 * m * k * n < 1.8e9 or 4 * k * n > 2 * MEMORY_BYTES:
        return None
    sizes = {"m": m, "k": k, "n": n, "gemm": int(u[3] < 0.5), "act": _pick(SHAPES, u[4])}
    return Case(kind="dense", sizes=sizes, passes=_passes(u[7]))


def _deep(u: list[float]) -> Case | None:
    """Several layers with their update behind one call: weights that do not stay in a cache, and what they cost then."""
    passes = "sgd" if u[5] < 0.5 else "adam" if u[5] < 0.75 else "training"
    layers = _pick((3, 4, 6, 8), u[3])
    if u[6] < 0.6:
        m, k = _pick(ROWS[:12], u[0]), _pick((256, 384, 768, 1024, 1536), u[1])
        if not 2e6 < layers * k * k < 1.7e7 or 6 * m * k * k * layers > 5e9:
            return None
        sizes = {"m": m, "k": k, "n": k, "gemm": int(u[4] < 0.5), "act": _pick(SHAPES, u[2]), "layers": layers}
        return Case(kind="dense", sizes=sizes, passes=passes)
    n, h, c = _pick(SAMPLES, u[0]), _pick((2, 4, 7, 8, 14, 16), u[1]), _pick((64, 128, 256, 512), u[2])
    if layers > 4 or 6 * n * h * h * c * c * 9 * layers > 5e9 or 6 * n * h * h * c * c * 9 * layers < 5e7:
        return None
    sizes = {"n": n, "h": h, "c": c, "k": c, "r": 3, "norm": 1, "act": "Relu", "layers": layers}
    return Case(kind="conv", sizes=sizes, passes=passes)


def _plain(u: list[float]) -> Case | None:
    m, n, k = (_pick((32, 64, 128, 256, 512, 1024, 2048), x) for x in u[:3])
    dtype = "float64" if u[3] < 0.3 else "bfloat16" if u[3] < 0.4 else "float32"
    if not 1e7 < 2 * m * n * k < 1.1e9:
        return None
    return Case(kind="product", sizes={"m": m, "n": n, "k": k}, dtype=dtype, passes="forward")


def _attend(u: list[float]) -> Case | None:
    n, heads, tokens, part = (
        _pick(SAMPLES[:12], u[0]),
        _pick((1, 2, 4, 6, 8, 12, 16), u[1]),
        _pick(TOKENS, u[2]),
        _pick((16, 32, 64, 64, 96, 128), u[3]),
    )
    if not 3e4 < n * heads * tokens**2 < 2.5e6:
        return None
    sizes = {"n": n, "heads": heads, "tokens": tokens, "part": part, "mask": int(u[4] < 0.5)}
    return Case(kind="attend", sizes=sizes, passes="forward" if 0.2 < u[5] < 0.3 else "training")


def _layer_norm(u: list[float]) -> Case | None:
    n, tokens, width = _pick(SAMPLES[:12], u[0]), _pick(TOKENS, u[1]), _pick(WIDTHS[3:17], u[2])
    if not 2e4 < n * tokens * width < 3e6:
        return None
    sizes = {"n": n, "tokens": tokens, "width": width, "add": int(u[3] < 0.5)}
    return Case(kind="layer_norm", sizes=sizes, passes="forward" if 0.2 < u[4] < 0.3 else "training")


def _norm(u: list[float]) -> Case | None:
    n, h, c = _pick(SAMPLES, u[0]), _pick(POINTS, u[1]), _pick(CHANNELS[:36], u[2])
    norm, add, act = int(u[3] < 0.6), int(u[4] < 0.5), _pick((*ACTIVATIONS, "HardSigmoid", "Gelu"), u[5])
    if not 2e4 < n * h * h * c < 4e6 or not (norm or add or act):
        return None
    sizes = {"n": n, "h": h, "c": c, "norm": norm, "add": add, "act": act}
    return Case(kind="norm", sizes=sizes, passes="forward" if 0.2 < u[6] < 0.3 else "training")


def _pool(u: list[float]) -> Case | None:
    n, h, c = _pick(SAMPLES, u[0]), _pick(POINTS[2:], u[1]), _pick(CHANNELS[:26], u[2])
    (r, stride), op = (
        _pick(((2, 2), (3, 2), (3, 1)), u[3]),
        _pick(("MaxPool", "AveragePool", "GlobalAveragePool"), u[4]),
    )
    if not 2e4 < n * h * h * c < 4e6:
        return None
    return Case(kind="pool", sizes={"n": n, "h": h, "c": c, "r": r, "stride": stride, "op": op})


def _gate(u: list[float]) -> Case | None:
    n, h, c = _pick(SAMPLES, u[0]), _pick(POINTS[2:21], u[1]), _pick(CHANNELS[:36], u[2])
    if not 2e4 < n * h * h * c < 3e6:
        return None
    return Case(kind="gate", sizes={"n": n, "h": h, "c": c, "act": "HardSigmoid" if u[3] < 0.5 else "Sigmoid"})


def _join(u: list[float]) -> Case | None:
    n, h, c = _pick(SAMPLES, u[0]), _pick(POINTS[2:], u[1]), _pick(CHANNELS[:33], u[2])
    return Case(kind="join", sizes={"n": n, "h": h, "c": c}) if 2e4 < n * h * h * c < 3e6 else None


def _loss(u: list[float]) -> Case | None:
    mean_squares = int(u[2] < 0.35)
    n, c = _pick(ROWS[:14], u[0]), _pick((2, *WIDTHS, 8192, 30000) if not mean_squares else (*WIDTHS[8:], 16384), u[1])
    return Case(kind="loss", sizes={"n": n, "c": c, "mean_squares": mean_squares}) if n * c < 4e6 else None


def _look_up(u: list[float]) -> Case | None:
    n, rows, width = _pick(ROWS[2:], u[0]), _pick((100, 1000, 4000, 16000), u[1]), _pick(WIDTHS[3:14], u[2])
    return Case(kind="look_up", sizes={"n": n, "rows": rows, "width": width})


def _update(u: list[float]) -> Case | None:
    elements = int(2 ** (13 + 10.5 * u[0]))
    sizes = {"elements": elements, "tensors": _pick((1, 1, 4, 16), u[1])}
    return Case(kind="update", sizes=sizes, passes=_pick(("sgd", "adam", "momentum", "adamw"), u[2]))


# The share of every kind, and the case that a point of the unit cube stands for.
_KINDS: dict[str, tuple[int, Callable[[list[float]], Case | None]]] = {
    "square": (20, _square),
    "pointwise": (12, _pointwise),
    "dense": (14, _dense),
    "depthwise": (10, _depthwise),
    "strided": (5, _strided),
    "norm": (8, _norm),
    "attend": (6, _attend),
    "first": (4, _first),
    "transposed": (5, _transposed),
    "layer_norm": (4, _layer_norm),
    "pool": (4, _pool),
    "loss": (3, _loss),
    "update": (4, _update),
    "deep": (6, _deep),
    "plain": (3, _plain),
    "wide": (3, _wide),
    "gate": (2, _gate),
    "join": (2, _join),
    "look_up": (2, _look_up),
}
