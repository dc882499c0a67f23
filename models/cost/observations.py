"""What was measured: one value per workload and run, checked when it is made.

An observation is a single operator or a segment (operators compiled together). It keeps what a later fit needs to
stand on its own: what the device was asked to do, operator by operator, and the circumstances: machine, versions,
plan, time, and conditions such as how many ranks shared the node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from statistics import median
from typing import Any, get_args

from ...errors import DataError
from ..onnxpp.count import FAMILIES, FAMILY_OPERATORS, PER_ELEMENT
from ..onnxpp.hints import DIRECTIONS
from .operation import DIMS, Operation
from .shapes import shape_key
from .workload import SubjectKind, WorkKind, Workload

__all__ = ["Observation", "lowering_key", "lowering_of"]

# Fields that an observation shares with the workload that was measured.
_SAID = ("subject", "subject_kind", "kind", "key", "components", "operations", "n_launches", "payload_bytes")
# Families of operations: those of graphs, attention as one product, and what an optimiser does.
_FAMILIES = (*FAMILIES, "attention", "update")
# Components of a device's workloads that are no family.
_OVERHEADS = ("kernels", "dispatch", "fusion", "other")
# Between shape, direction and way in the key of a lowering.
_BETWEEN = " | "
_PHASES = ("forward", "backward", "backward_input", "backward_weight", "training", "update")
# Names for products and convolutions, whatever operator asked for them.
_PRODUCTS = {"matmul": ("linear", "bmm", "attention"), "attention": ("attention",), "conv": ("conv", "convtranspose")}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A measured workload: the median `seconds` of `repeats`, nine in ten of which lay between `low_s` and `high_s`.

    subject, subject_kind, kind, key, components, n_launches, payload_bytes, operations   as in
              :class:`~.workload.Workload`
    run       names the run or measurement that it comes from; plan   the SHA-256 of the plan that was executed, if any
    machine   the fingerprint of the hardware; host   the node's name: equal hardware, but perhaps a slower one
    versions  of what computed it ({"jax": "0.6.0"}); time   ISO 8601, UTC
    conditions  what else bears on the time, as far as it is known: "threads" of a rank, "ranks_on_node", "clock_hz",
              "governor"; and the device's "vendor" and "architecture", by which it has relatives

    Raises:
        DataError: times that are not positive, operators or families that nobody knows, no name.
    """

    subject: str
    subject_kind: SubjectKind
    kind: WorkKind
    key: str
    components: Mapping[str, float]
    operations: tuple[Operation, ...] = ()
    n_launches: int = 0
    payload_bytes: int = 0
    seconds: float
    low_s: float
    high_s: float
    repeats: int = 1
    run: str
    plan: str = ""
    machine: str = ""
    host: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, float | str] = field(default_factory=dict)
    time: str = ""

    def __post_init__(self) -> None:
        problems = []
        times = (self.low_s, self.seconds, self.high_s)
        if not all(math.isfinite(t) and t > 0 for t in times) or list(times) != sorted(times):
            problems.append(
                f"a time of {self.seconds} s between {self.low_s} and {self.high_s} s (times are positive and finite, "
                "low <= median <= high)"
            )
        # One of several ways to compute something has no roofline of its own.
        some = any(self.components.values()) or self.kind == "lowering"
        if any(not math.isfinite(v) or v < 0 for v in self.components.values()) or not some:
            problems.append(f"components {dict(self.components)}")
        if self.repeats < 1:
            problems.append(f"{self.repeats} repeats")
        if self.kind not in get_args(WorkKind):
            problems.append(f"kind '{self.kind}'")
        if self.subject_kind not in get_args(SubjectKind):
            problems.append(f"kind of subject '{self.subject_kind}'")
        if self.subject_kind in ("cpu", "gpu"):
            problems += _unknown_components(self.components)
        problems += _checked(self.operations)
        if self.kind == "lowering" and (self.key.count(_BETWEEN) != 2 or lowering_of(self.key)[1] not in DIRECTIONS):
            problems.append(f"a key that names no shape, direction ({', '.join(DIRECTIONS)}) and way")
        if not self.subject or not self.run or not self.key:
            problems.append("no name of what was measured, of its key or of the run")
        if problems:
            raise DataError(
                f"observation '{self.key}' of '{self.subject}' in run '{self.run}' has {'; '.join(problems)}. "
                "Measure it again."
            )

    @property
    def ranks_on_node(self) -> float | None:
        """How many ranks shared the node; None where nobody says."""
        found = self.conditions.get("ranks_on_node")
        return found if isinstance(found, (int, float)) else None

    @property
    def shape_key(self) -> str:
        """The key without sizes, which candidates for interpolation share (:mod:`.shapes`)."""
        return shape_key(self.kind, self.key, self.operations)

    @property
    def workload(self) -> Workload:
        """What was measured, with the rooflines that it had then."""
        return Workload(**{name: getattr(self, name) for name in _SAID})

    @classmethod
    def of(
        cls,
        workload: Workload,
        samples_s: Sequence[float],
        *,
        run: str,
        plan: str = "",
        machine: str = "",
        host: str = "",
        versions: Mapping[str, str] | None = None,
        conditions: Mapping[str, float | str] | None = None,
        time: str = "",
    ) -> Observation:
        """What `samples_s` (one or more repeats, warm-up left out) say about `workload`.

        Raises:
            DataError: no samples, or times that cannot be.
        """
        if not samples_s:
            raise DataError(
                f"observation '{workload.key}' of '{workload.subject}' in run '{run}': no repeats were measured."
            )
        ordered = sorted(samples_s)
        # With few repeats the extremes stand for the 5th and 95th percentile.
        edge = int(0.05 * (len(ordered) - 1))
        return cls(
            **said_by(workload),
            seconds=median(ordered),
            low_s=ordered[edge],
            high_s=ordered[-1 - edge],
            repeats=len(ordered),
            run=run,
            plan=plan,
            machine=machine,
            host=host,
            versions=dict(versions or {}),
            conditions=dict(conditions or {}),
            time=time,
        )


def lowering_key(shape: str, direction: str, way: str) -> str:
    """The key of an observation of the kind "lowering".

    >>> lowering_key("conv 8x64x56x56 to 64x56x56 by 3x3/1x1 pad 1+1,1+1", "weight", "taps")
    'conv 8x64x56x56 to 64x56x56 by 3x3/1x1 pad 1+1,1+1 | weight | taps'
    """
    return _BETWEEN.join((shape, direction, way))


def lowering_of(key: str) -> tuple[str, str, str]:
    """(shape, direction, way) of such a key."""
    shape, direction, way = key.split(_BETWEEN)
    return shape, direction, way


def said_by(workload: Workload) -> dict[str, Any]:
    """The fields of an observation that describe what was done."""
    return {name: getattr(workload, name) for name in _SAID}


def _unknown_components(components: Iterable[str]) -> list[str]:
    known = (*_FAMILIES, *_OVERHEADS)
    return [f"component '{c}'{_did_you_mean(c, known)}" for c in components if c.partition(".")[0] not in known]


def _checked(operations: Iterable[Operation]) -> list[str]:
    """Problems of the operations, each once however many operations share it."""
    problems: dict[str, None] = {}
    for o in operations:
        what = f"operation '{o.op}' of family '{o.family}'"
        if o.family not in _FAMILIES:
            problems[f"{what}: no such family{_did_you_mean(o.family, _FAMILIES)}"] = None
        elif o.op not in _operators(o.family) and not _is_elementwise(o):
            problems[f"{what}: no such operator{_did_you_mean(o.op, _operators(o.family))}"] = None
        if o.phase not in _PHASES:
            problems[f"{what}: phase '{o.phase}'{_did_you_mean(o.phase, _PHASES)}"] = None
        if len(o.dims) not in (len(DIMS.get(o.family, ())), 2) or any(d < 1 for d in o.dims):
            problems[f"{what}: dimensions {list(o.dims)}"] = None
        work = (o.flops, o.read_bytes, o.write_bytes)
        if not all(math.isfinite(n) and n >= 0 for n in work) or min(o.item_bytes, o.count) < 1:
            moved = f"{o.read_bytes} and {o.write_bytes} bytes, {o.item_bytes} an element"
            problems[f"{what}: work of {o.flops} FLOP, {moved}, {o.count} times"] = None
    return list(problems)


@cache
def _operators(family: str) -> frozenset[str]:
    """Names of the family's operators as operations have them; empty where any element-wise operator belongs to it."""
    return frozenset((*_PRODUCTS.get(family, ()), *FAMILY_OPERATORS.get(family, "").lower().split()))


def _is_elementwise(operation: Operation) -> bool:
    if operation.family == "update":
        return bool(operation.op)
    return operation.family == "elementwise" and operation.op in _standard_operators()


@cache
def _standard_operators() -> frozenset[str]:
    import onnx.defs

    return frozenset(s.name.lower() for s in onnx.defs.get_all_schemas()) | frozenset(map(str.lower, PER_ELEMENT))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name.partition(".")[0], sorted(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
