"""How long each way of :mod:`.lowerings` is expected to take where nobody measured it.

``seconds = call + sum over terms (theta * term)``, the terms being the work of :mod:`.lowering_terms`. Every term counts twice,
as work that threads share (term / threads) and as work that they do not, or for which they share something else, such as the
way to memory; how much of a way is of which kind is learned. No theta is negative.

The thetas ship as ``lowering_times.json``, fitted by ``python -m hpdlf.experiments.fit_lowerings`` to shapes that were drawn at
random and timed on one core and on two of one machine; no rows of them are kept. Processors differ most in arithmetic, which
has doubled from one generation to the next while caches gave as much as before. So terms of arithmetic are scaled by how long
it takes beside the machine of the thetas, ``slower`` (:class:`Processor`): by the device's profile (:func:`processor_of`), or
by what was measured there (:func:`slowness`).

>>> from .lowerings_convolution import Convolution
>>> conv = Convolution(samples=16, channels=64, filters=64, groups=1, size=(56, 56), kernel=(3, 3), strides=(1, 1),
...     dilations=(1, 1), pads=((1, 1), (1, 1)), output=(56, 56))
>>> times = LoweringTimes.default()
>>> times.seconds(conv, "forward", "xla", Processor()) > times.seconds(conv, "forward", "winograd4", Processor())
True
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...hwprofiles import Device
from ..onnxpp.hints import Direction
from .lowering_terms import ARITHMETIC, group_of, terms
from .lowerings_convolution import Convolution
from .lowerings_family import Shape, older_kernels
from .traits import traits_of

__all__ = [
    "LOWERING_TIMES_FILE",
    "ONE_CORE",
    "LoweringTimes",
    "Processor",
    "processor_of",
    "shared_and_alone",
    "slowness",
]

LOWERING_TIMES_FILE = Path(__file__).with_name("lowering_times.json")
FORMAT = "hpdlf.lowering_times"
VERSION = 1
CALL_S = 1.2e-5
# Appended to the name of a term whose work threads do not share.
ALONE = " alone"
# How much slower or faster than the machine of the thetas a processor is looked for, in steps of a twelfth of a doubling.
SLOWEST, FASTEST, STEP = 32.0, 0.25, 2.0 ** (1 / 12)
# So many timings, of which this share is arithmetic, tell that.
ENOUGH, TELLING = 12, 1 / 3


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What something is computed on.

    kind      of the device: "cpu", or another
    threads   that compute one operator together
    slower    how many times as long arithmetic takes a core as one of the machine that the thetas were measured on
    """

    kind: str = "cpu"
    threads: int = 1
    slower: float = 1.0


ONE_CORE = Processor()
"""A core of that machine."""


class LoweringTimes:
    """What was learned of every way.

    thetas        by group (:func:`.lowering_terms.group_of`) and term
    flops_per_s   what a core of that machine does in large products of float32
    """

    def __init__(self, thetas: Mapping[str, Mapping[str, float]], flops_per_s: float) -> None:
        self.thetas = thetas
        self.flops_per_s = flops_per_s

    @classmethod
    def default(cls) -> LoweringTimes:
        """What ships with the package.

        Raises:
            DataError: the file is missing, damaged or from a newer version.
        """
        return _read(LOWERING_TIMES_FILE)

    def seconds(
        self, shape: Shape, direction: Direction, way: str, processor: Processor, *, item_bytes: int = 4
    ) -> float:
        """Seconds of a direction of `shape` in `way`, with elements of so many bytes (at least 4)."""
        arithmetic, rest = self.parts(shape, direction, way, threads=processor.threads, item_bytes=item_bytes)
        return arithmetic * processor.slower + rest

    def parts(
        self,
        shape: Shape,
        direction: Direction,
        way: str,
        *,
        threads: int,
        item_bytes: int = 4,
        older: bool | None = None,
    ) -> tuple[float, float]:
        """Seconds of arithmetic on the machine of the thetas, and of everything else.

        older   whether by XLA's older generator of kernels; None: as networks are compiled for so many threads
        """
        if older is None:
            older = older_kernels(isinstance(shape, Convolution), threads)
        thetas = self.thetas[group_of(shape, direction, way, older=older)]
        found = [0.0, CALL_S]
        for name, seconds in shared_and_alone(shape, direction, way, threads=threads, item_bytes=item_bytes).items():
            found[name.removesuffix(ALONE) not in ARITHMETIC] += thetas.get(name, 0.0) * seconds
        return found[0], found[1]


def shared_and_alone(
    shape: Shape, direction: Direction, way: str, *, threads: int, item_bytes: int = 4
) -> dict[str, float]:
    """The terms of a way, each as work that `threads` share and as work that they do not."""
    found = {}
    for name, seconds in terms(shape, direction, way, item_bytes).items():
        found[name] = seconds / threads
        found[name + ALONE] = seconds
    return found


def processor_of(device: Device, threads: int = 1) -> Processor:
    """`device` with so many threads, as fast as its profile says.

    Raises:
        ProfileError: it is a processor whose profile has no peak of float32.
    """
    if device.kind != "cpu":
        return Processor(kind=device.kind, threads=threads)
    cores = device.compute_units.value if device.compute_units else 1.0
    a_core = traits_of(device, "float32").matrix_flops_per_s / cores
    return Processor(threads=threads, slower=LoweringTimes.default().flops_per_s / a_core)


def slowness(
    timed: Iterable[tuple[Shape, Direction, str, float]], *, threads: int, item_bytes: int = 4
) -> float | None:
    """:attr:`Processor.slower` of a machine by what was measured there, (shape, direction, way, seconds) each: that with the
    least mean absolute error in the logarithm, over the timings that are arithmetic to a third or more on the machine of the
    thetas, each weighing as much as it is. None where there are fewer than :data:`ENOUGH` of these.
    """
    times = LoweringTimes.default()
    rows = [
        (*times.parts(shape, direction, way, threads=threads, item_bytes=item_bytes), seconds)
        for shape, direction, way, seconds in timed
    ]
    telling = [row for row in rows if row[0] > TELLING * (row[0] + row[1])]
    if len(telling) < ENOUGH:
        return None
    arithmetic, rest, seconds = np.array(telling).T
    tried = FASTEST * STEP ** np.arange(round(np.log(SLOWEST / FASTEST) / np.log(STEP)) + 1)
    errors = np.abs(np.log((arithmetic[:, None] * tried + rest[:, None]) / seconds[:, None]))
    return float(tried[np.argmin(np.average(errors, axis=0, weights=arithmetic / (arithmetic + rest)))])


@cache
def _read(path: Path) -> LoweringTimes:
    mend = "Reinstall the package, or write it anew: `python -m hpdlf.experiments.fit_lowerings DATABASE`."
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise DataError(f"{path}: is no file of times of lowerings. {mend}")
        if data["version"] > VERSION:
            raise DataError(f"{path}: has version {data['version']}, this hpdlf reads up to {VERSION}: update hpdlf.")
        thetas = {g: {n: float(v) for n, v in rows.items()} for g, rows in data["thetas"].items()}
        return LoweringTimes(thetas, float(data["flops_per_s"]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {mend}") from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}). {mend}") from None
