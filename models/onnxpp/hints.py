"""Hardware-specific hints: how each direction of an operator is computed, in a configuration of an ONNX++ file.

They stand on the node, as ``hpdlf.lowering.ID``, where ID is the configuration's: a JSON object of directions ("forward", the
rest being gradients: "input" and "weight" of what has a weight, "left" and "right" of the operands of a product), each with the
way, the seconds that it took where it was measured, and where the choice comes from::

    {"forward": {"way": "winograd4", "seconds": 0.0041, "source": "measured",
                 "detail": {"shape": "conv 8x64x56x56 ...", "machine": "5be1c06b61a3", "threads": 2, "time": "2026-11-26", ...}},
     "weight": {"way": "taps", "seconds": null, "source": "modelled", "detail": {"shape": "conv 8x64x56x56 ..."}}}

A hint changes how long an operator takes, and its results by rounding alone. What it does not name is for the executor to
choose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from onnx import ModelProto

from ...errors import ModelError
from .onnxpp import PREFIX, Onnxpp
from .problems import Problems, did_you_mean

__all__ = [
    "DIRECTIONS",
    "LOWERING",
    "WAYS",
    "Direction",
    "Hint",
    "Hints",
    "Source",
    "check_hints",
    "hints_of",
    "with_hints",
    "with_lowering",
]

Direction = Literal["forward", "input", "weight", "left", "right"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
# Every way of any operator; which of them compute a shape is known where shapes are (models/cost/lowerings.py).
WAYS = (
    *("xla", "matmul", "im2col", "taps", "winograd2", "winograd4", "shifted", "rows", "split"),
    *("turned", "swapped", "swapturned"),
)
Source = Literal["measured", "modelled"]
LOWERING = "lowering."
FIELDS = ("way", "seconds", "source", "detail")
# A file from elsewhere may say anything; ours takes about 300 characters a direction.
LONGEST = 8192


@dataclass(frozen=True, kw_only=True)
class Hint:
    """How one direction of an operator is to be computed.

    way       one of :data:`WAYS`
    seconds   what that took, where it was measured
    source    "measured", or "modelled": expected from the shape alone
    detail    of the shape, and where it was measured of the machine (its fingerprint), threads, time and versions
    """

    way: str
    seconds: float | None = None
    source: Source = "modelled"
    detail: Mapping[str, str | int | float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, in the file's order."""
        return {"way": self.way, "seconds": self.seconds, "source": self.source, "detail": dict(self.detail)}


Hints = Mapping[str, Mapping[Direction, Hint]]
"""By operator name and direction."""


def with_hints(model: Onnxpp, configuration: str, hints: Hints) -> Onnxpp:
    """A copy of `model` that says in `configuration` how operators are computed; earlier hints of it are replaced.

    Raises:
        ModelError: no such configuration or operator, or a hint that nobody could read back.
    """
    names = set(model.graph.operator)
    problems = Problems(f"configuration {configuration!r} of {model.graph.name!r}", "cannot be given hints")
    known = {c.name: c.num_devices for c in model.proto.configuration}
    if configuration not in known:
        problems.add(f"there is no such configuration{did_you_mean(configuration, known)}; annotate the model first")
    for name in sorted(set(hints) - names):
        problems.add(f"the graph has no operator {name!r}{did_you_mean(name, names)}")
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    key = f"{PREFIX}{LOWERING}{configuration}"
    for node in proto.graph.node:
        drop_hints(node, configuration)
        if told := hints.get(node.name):
            value = json.dumps({d: told[d].as_dict() for d in DIRECTIONS if d in told})
            check_hints(f"node {node.name!r}", value, problems)
            for direction in sorted(set(told) - set(DIRECTIONS)):
                problems.add(f"node {node.name!r}: no direction {direction!r}{did_you_mean(direction, DIRECTIONS)}")
            node.metadata_props.add(key=key, value=value)
    problems.stop()
    return replace(model, proto=proto)


def drop_hints(node: Any, configuration: str) -> None:
    """Take what a NodeProto says of a configuration's lowering out of it."""
    key = f"{PREFIX}{LOWERING}{configuration}"
    others = [p for p in node.metadata_props if p.key != key]
    if len(others) != len(node.metadata_props):
        del node.metadata_props[:]
        node.metadata_props.extend(others)


def hints_of(model: Onnxpp, configuration: str) -> Hints:
    """What `model` says in `configuration`, operators in the graph's order; ModelError if it has no such configuration."""
    known = [c.name for c in model.proto.configuration]
    if configuration not in known:
        listed = f"; it has {', '.join(known)}" if known else "; it has none"
        raise ModelError(
            f"{model.graph.name!r} has no configuration {configuration!r}{did_you_mean(configuration, known) or listed}"
        )
    key, names = f"{PREFIX}{LOWERING}{configuration}", set(model.graph.operator)
    return {
        node.name: {direction: Hint(**told) for direction, told in json.loads(prop.value).items()}
        for node in model.proto.graph.node
        if node.name in names
        for prop in node.metadata_props
        if prop.key == key
    }


def with_lowering(model: Onnxpp, configuration: str) -> Onnxpp:
    """`model` with a graph whose operators are computed as `configuration` says (`Operator.lowering`); others as before.

    Raises:
        ModelError: it has no such configuration.
    """
    ways: Mapping[str, Mapping[str, str]] = {
        name: {direction: hint.way for direction, hint in told.items()}
        for name, told in hints_of(model, configuration).items()
    }
    operators = tuple(replace(o, lowering=ways.get(o.name, {})) for o in model.graph.operators)
    return replace(model, graph=replace(model.graph, operators=operators))


def check_hints(where: str, text: str, problems: Problems) -> None:
    """Everything that can be wrong with a node's hints, as they stand in the file; `where` names node and key."""
    try:
        said = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        problems.add(f"{where}: {text[:60]!r} is no JSON object of directions; plan the model again")
        return
    for direction, hint in said.items():
        if direction not in DIRECTIONS:
            problems.add(f"{where}: no direction {direction[:60]!r}{did_you_mean(direction[:60], DIRECTIONS)}")
            break  # one is enough to say that the file is damaged
        here = f"{where}, {direction}"
        if not isinstance(hint, dict):
            problems.add(f"{here}: {json.dumps(hint)[:60]} is no JSON object; plan the model again")
            continue
        if unknown := next((name[:60] for name in hint if name not in FIELDS), ""):
            problems.add(f"{here}: {unknown!r} is unknown{did_you_mean(unknown, FIELDS)}")
        _check_hint(here, hint, problems)


def _check_hint(where: str, hint: Mapping[str, Any], problems: Problems) -> None:
    way, source, seconds = (hint.get(name) for name in ("way", "source", "seconds"))
    if not isinstance(way, str) or way not in WAYS:
        near = did_you_mean(way[:60], WAYS) if isinstance(way, str) else ""
        listed = near or f"; there are {', '.join(WAYS)}"
        problems.add(f"{where}: no way {_short(way)}{listed}")
    if source not in get_args(Source):
        problems.add(f"{where}: the source is {_short(source)}, expected {' or '.join(get_args(Source))}")
    elif (source == "measured") != (seconds is not None):
        expected = "a measured way says its seconds" if source == "measured" else "only a measured way has seconds"
        problems.add(f"{where}: seconds {_short(seconds)}, but {expected}")
    if seconds is not None and not (_is_number(seconds) and 0 < seconds < math.inf):
        problems.add(f"{where}: seconds {_short(seconds)} are no time")
    detail = hint.get("detail", {})
    if not isinstance(detail, dict) or not all(isinstance(v, str) or _is_number(v) for v in detail.values()):
        problems.add(f"{where}: the detail {_short(detail)} is no JSON object of texts and numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: object) -> str:
    return json.dumps(value)[:60]
