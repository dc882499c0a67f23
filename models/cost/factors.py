"""Factors: how many times longer than the roofline things take, by subject (device, link, host) and component.

The package ships *prior* factors per kind of subject, derived from public measurements by ``hpdlf.experiments.fit_prior``;
measurements of the user's own replace them for what was measured (:mod:`.fit`).

>>> prior = load_prior()
>>> prior.factor("any core", "cpu", "conv").value > 1
True
>>> prior.is_learned("any core", "conv")
False
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ...errors import DataError
from .local_times import LocalTimes, Part
from .operation import Operation

__all__ = ["PRIOR_FILE", "Factor", "Factors", "load_prior"]

PRIOR_FILE = Path(__file__).with_name("prior.json")
FORMAT = "hpdlf.cost_prior"
VERSION = 1
# Nine in ten of a log-normal distribution lie within this many standard deviations.
NINETY = 1.645


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """Time over roofline: `value`, and `spread`, the standard deviation of its logarithm for one workload.

    `observations` counts what it was fitted on; 0 for a prior.
    """

    value: float
    spread: float
    observations: int = 0

    @property
    def low(self) -> float:
        """Nine in ten lie above this and below `high`."""
        return self.value * math.exp(-NINETY * self.spread)

    @property
    def high(self) -> float:
        """See `low`."""
        return self.value * math.exp(NINETY * self.spread)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """`prior` by kind of subject and component, `learned` by subject and component; `local` by subject, where its
    operations were measured one by one: finer than a factor for each component.
    """

    prior: Mapping[str, Mapping[str, Factor]]
    learned: Mapping[tuple[str, str], Factor] = field(default_factory=dict)
    local: Mapping[str, LocalTimes] = field(default_factory=dict)

    def parts(self, subject: str, operations: Sequence[Operation]) -> Mapping[str, Part]:
        """What measurements of the subject say of `operations` in one call, by component; empty where they say nothing."""
        local = self.local.get(subject)
        return local.estimate(operations) if local is not None and operations else {}

    def factor(self, subject: str, kind: str, component: str) -> Factor:
        """The learned factor, else the prior's for the nearest component: "conv.backward.half" falls back on
        "conv.half", "conv.backward", "conv" and "other". A component "<name>:<component>" belongs to the subject of
        that name.
        """
        found = self.learned.get((subject, component))
        if found is None and ":" in component:
            subject, _, component = component.partition(":")
            found = self.learned.get((subject, component))
        return found if found is not None else self.prior_factor(kind, component)

    def prior_factor(self, kind: str, component: str) -> Factor:
        """The factor that ships with the package."""
        known = self.prior[kind]
        component = component.rpartition(":")[2]
        family, *rest = component.split(".")
        names = [component]
        if kind in ("link", "host"):
            names += rest
        else:
            names += [f"{family}.{part}" for part in reversed(rest)] + [family]
        for name in names:
            if name in known:
                return known[name]
        return known["other"]

    def is_learned(self, subject: str, component: str) -> bool:
        """Whether measurements of the subject stand behind the factor."""
        inner, _, name = component.rpartition(":")
        return (subject, component) in self.learned or (bool(inner) and (inner, name) in self.learned)


def load_prior(path: Path = PRIOR_FILE) -> Factors:
    """The factors that ship with the package, or those of another file that ``hpdlf.experiments.fit_prior`` wrote.

    Raises:
        DataError: the file is missing, damaged or from a newer version.
    """
    return Factors(prior=_read_prior(path))


@cache
def _read_prior(path: Path) -> Mapping[str, Mapping[str, Factor]]:
    mend = "Write it anew: `python -m hpdlf.experiments.fit_prior DATA_DIR`, or reinstall the package."
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise DataError(f"{path}: is no file of cost factors. {mend}")
        if data["version"] > VERSION:
            raise DataError(f"{path}: has version {data['version']}, this hpdlf reads up to {VERSION}: update hpdlf.")
        return {
            kind: {name: Factor(value=float(row["value"]), spread=float(row["spread"])) for name, row in rows.items()}
            for kind, rows in data["kinds"].items()
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {mend}") from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}). {mend}") from None
