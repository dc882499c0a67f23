"""What a framework makes of devices and links: three numbers that were fitted on published runs, and facts about its kernels.

Operators' times come from measurements of kernels one by one. A framework that strings them together adds what such tables do not
show, and saves what it fuses: glue between kernels, allocation, layouts, streams that wait for each other. All of it is put into

* ``products``, a factor on the time of matrix products, convolutions and attention,
* ``rows``, a factor on the time of everything else that a device does (normalisation, activations, copies, updates),
* ``communication``, a factor on the time of messages and collectives;
* ``step_s`` in place of ``rows``, where runs were long or large enough to show it: seconds between two steps in which devices wait for
  the host.

They stand in ``software.toml`` beside this module with their spread (the standard deviation of the logarithm) and what they were
fitted on, by :mod:`hpdlf.experiments.fit_software`. Which neighbouring operators run as one kernel, which kernels compute attention,
and how long the host takes to call a kernel are facts, and stand there too.

>>> load_software("JAX 0.4").name, load_software("a framework nobody knows").name
('compiled', 'any')
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...errors import DataError

__all__ = ["COMPILED", "Fuses", "Scalar", "Software", "load_software", "softwares"]

SOFTWARE_FILE = Path(__file__).with_name("software.toml")
FORMAT = 1
Fuses = Literal["all", "pairs", "none", "autocast"]
_FUSES = ("all", "pairs", "none", "autocast")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalar:
    """A fitted number; `spread` is the standard deviation of its logarithm, `on` what it was fitted on."""

    value: float
    spread: float
    on: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """A framework, or one version of it; the fields are explained in the module's text and in the file."""

    name: str
    names: tuple[str, ...]
    fuses: Fuses
    attention: int
    call_s: float
    products: Scalar
    rows: Scalar
    communication: Scalar
    step_s: Scalar

    @property
    def spread(self) -> float:
        """The standard deviation of the logarithm of a step's time that the framework alone accounts for."""
        return self.products.spread


def load_software(text: str) -> Software:
    """The software that a published table or a user calls `text`; upper and lower case are the same, and a framework that is not
    known is taken to be like the average of those that are.

    Raises:
        DataError: the shipped file is missing or damaged.
    """
    said = re.sub(r"\s+", " ", text.strip().lower())
    return next(s for s in softwares() if any(fnmatchcase(said, pattern) for pattern in s.names))


@cache
def softwares() -> tuple[Software, ...]:
    """Every software of the shipped file, in its order: the first whose names fit is meant.

    Raises:
        DataError: the file is missing or damaged.
    """
    mend = "Reinstall the package, or restore the file."
    try:
        said = tomllib.loads(SOFTWARE_FILE.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{SOFTWARE_FILE}: cannot be read: {error}. {mend}") from None
    try:
        return parsed(said)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{SOFTWARE_FILE}: {error}. {mend}") from None


def parsed(said: Mapping[str, Any]) -> tuple[Software, ...]:
    """The entries of a file. Raises ValueError, KeyError or TypeError where one is incomplete or out of range."""
    if said["format"] != FORMAT:
        raise ValueError(f"has format {said['format']}, this hpdlf reads {FORMAT}")
    entries = {entry["name"]: entry for entry in said["software"]}
    found = tuple(_software(_whole(entry, entries)) for entry in said["software"])
    if not any("*" in s.names for s in found):
        raise ValueError('no entry is named "*": one has to stand for what is not known')
    return found


def _whole(entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """`entry` over what it is like."""
    if "like" not in entry:
        return entry
    whole = {**_whole(entries[entry["like"]], entries), **entry}
    for own, other in (("rows", "step_s"), ("step_s", "rows")):
        if own in entry and other not in entry:
            whole.pop(other, None)
    return whole


def _software(entry: Mapping[str, Any]) -> Software:
    name = entry["name"]
    if entry["fuses"] not in _FUSES:
        raise ValueError(f"software '{name}': fuses '{entry['fuses']}' is none of {', '.join(_FUSES)}")
    if ("rows" in entry) == ("step_s" in entry):
        raise ValueError(f"software '{name}': has to have either rows or step_s, as three numbers are fitted at most")
    if entry["attention"] not in (1, 2, 3):
        raise ValueError(f"software '{name}': attention {entry['attention']} is none of 1, 2 and 3")
    return Software(
        name=name,
        names=tuple(entry["names"]),
        fuses=entry["fuses"],
        attention=entry["attention"],
        call_s=float(entry["call_s"]),
        products=_scalar(entry, "products"),
        rows=_scalar(entry, "rows") if "rows" in entry else _UNFITTED,
        communication=_scalar(entry, "communication"),
        step_s=_scalar(entry, "step_s") if "step_s" in entry else _NO_GAP,
    )


_UNFITTED = Scalar(value=1.0, spread=0.1, on="nothing: as measured one by one")
_NO_GAP = Scalar(value=0.0, spread=0.0, on="nothing")


def _scalar(entry: Mapping[str, Any], field: str) -> Scalar:
    said = entry[field]
    value, spread = float(said["value"]), float(said["spread"])
    if not ((0.0 if field == "step_s" else 1e-3) <= value < math.inf and 0.0 <= spread < math.inf):
        raise ValueError(f"software '{entry['name']}': {field} of {value} with spread {spread} is out of range")
    return Scalar(value=value, spread=spread, on=str(said["on"]))


COMPILED = load_software("compiled")
