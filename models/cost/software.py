"""What a framework makes of devices and links: three numbers that were fitted on published runs, and facts about its kernels.

Operators' times come from measurements of kernels one by one. A framework that strings them together adds what such tables do not
show: glue between kernels, allocation, streams that wait for each other, a host that is too slow. All of it is put into

* ``compute``, a factor on the time of operators and updates,
* ``communication``, a factor on the time of messages and collectives, and
* ``call_s``, the host's time for one call of a kernel: a segment takes at least as long as the host takes to call its kernels.

They stand in ``software.toml`` beside this module with their spread (the standard deviation of the logarithm) and what they were
fitted on. Which neighbouring operators run as one kernel and which kernels compute attention are facts, and stand there too.

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
Fuses = Literal["all", "pairs", "none"]
_FUSES = ("all", "pairs", "none")


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
    compute: Scalar
    communication: Scalar
    call_s: Scalar


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
    return {**_whole(entries[entry["like"]], entries), **entry}


def _software(entry: Mapping[str, Any]) -> Software:
    name = entry["name"]
    if entry["fuses"] not in _FUSES:
        raise ValueError(f"software '{name}': fuses '{entry['fuses']}' is none of {', '.join(_FUSES)}")
    if entry["attention"] not in (2, 3):
        raise ValueError(f"software '{name}': attention {entry['attention']} is neither 2 nor 3")
    return Software(
        name=name,
        names=tuple(entry["names"]),
        fuses=entry["fuses"],
        attention=entry["attention"],
        compute=_scalar(entry, "compute"),
        communication=_scalar(entry, "communication"),
        call_s=_scalar(entry, "call_s"),
    )


def _scalar(entry: Mapping[str, Any], field: str) -> Scalar:
    said = entry[field]
    value, spread = float(said["value"]), float(said["spread"])
    least = 0.0 if field == "call_s" else 1e-3
    if not (least <= value < math.inf and 0.0 <= spread < math.inf):
        raise ValueError(f"software '{entry['name']}': {field} of {value} with spread {spread} is out of range")
    return Scalar(value=value, spread=spread, on=str(said["on"]))


COMPILED = load_software("compiled")
