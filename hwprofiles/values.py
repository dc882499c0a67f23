"""From one value of a TOML table to a quantity: number, unit, source, tier, range and date, each checked.

Like everything that reads profiles, these functions append what is wrong to a list and go on.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from .fields import Field
from .profile import TIERS, Quantity
from .units import AMOUNT, EXAMPLE_UNIT, SI_UNIT, UnitError, describe_dimension, format_value, parse_unit, to_si

__all__ = ["Problem", "complain_of_unknown_keys", "path_of", "read_quantity", "read_text"]

_QUANTITY_KEYS = ("value", "unit", "source", "tier", "low", "high", "date")


class Problem(NamedTuple):
    """One thing that is wrong with a file, and the field where."""

    file: str
    where: str
    text: str


def read_quantity(raw: Any, field: Field, file: str, path: str, problems: list[Problem]) -> Quantity | None:
    def complain(text: str, at: str = path) -> None:
        problems.append(Problem(file, at, text))

    start = len(problems)
    unit_example = EXAMPLE_UNIT[field.dimension]
    if not isinstance(raw, Mapping):
        unit = "" if field.dimension == AMOUNT else f'unit = "{unit_example}", '
        complain(f'is {raw!r} without a source; write {{ value = {raw!r}, {unit}source = "...", tier = "measured" }}')
        return None
    complain_of_unknown_keys(raw, list(_QUANTITY_KEYS), "a value", file, path, problems)
    source = read_text(raw, "source", True, file, path, problems)
    tier = read_text(raw, "tier", True, file, path, problems)
    if tier is not None and tier not in TIERS:
        close = get_close_matches(tier, TIERS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it is one of {', '.join(TIERS)}"
        complain(f"{tier!r} is no tier; {hint}", f"{path}.tier")
    factor, unit = _factor(raw, field, complain)
    numbers = {key: _number(raw, key, complain, path) for key in ("value", "low", "high")}
    if factor is None or numbers["value"] is None:
        return None
    si = {key: None if number is None else to_si(number, factor) for key, number in numbers.items()}
    value = si["value"]
    assert value is not None
    if value < 0 or (value == 0 and field.low > 0):
        complain(f"{numbers['value']:g}{unit} is not positive; leave the field out where the value is not known")
    elif not field.low <= value <= field.high:
        least, most = (format_value(bound, field.dimension) for bound in (field.low, field.high))
        complain(f"{numbers['value']:g}{unit} is outside {least} to {most}; is the unit's prefix right?")
    elif field.integer and value != round(value):
        complain(f"{value:g} is no whole number")
    low, high = si["low"], si["high"]
    if value >= 0 and (
        (low is not None and low > value) or (high is not None and high < value) or (low is not None and low < 0)
    ):
        complain("must lie between its own low and high, which are not negative")
    date = _date(raw, field, complain, path)
    if len(problems) > start:
        return None
    return Quantity(
        value=value, unit=SI_UNIT[field.dimension], source=source or "", tier=tier or "", low=low, high=high, date=date
    )


def complain_of_unknown_keys(
    table: Mapping[str, Any], known: list[str], owner: str, file: str, where: str, problems: list[Problem]
) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            problems.append(Problem(file, path_of(where, key), f"is no field of {owner}; {hint}"))


def read_text(
    table: Mapping[str, Any], key: str, required: bool, file: str, where: str, problems: list[Problem]
) -> str | None:
    value = table.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if value is not None:
        problems.append(Problem(file, path_of(where, key), f"{value!r} is no text" if value != "" else "is empty"))
    elif required:
        hint = {"source": ": where does this number come from?", "tier": f": one of {', '.join(TIERS)}"}
        problems.append(Problem(file, path_of(where, key), f"is missing{hint.get(key, '')}"))
    return None


def path_of(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _factor(raw: Mapping[str, Any], field: Field, complain: Callable[..., None]) -> tuple[float | None, str]:
    """The factor to SI and the unit as text after a number; (None, ...) after a complaint."""
    text = raw.get("unit")
    expected = f"expected {describe_dimension(field.dimension)}, e.g. '{EXAMPLE_UNIT[field.dimension]}'"
    if text is None:
        if field.dimension == AMOUNT:
            return 1.0, ""
        complain(f"has no unit; {expected}")
    elif not isinstance(text, str):
        complain(f"unit {text!r} is no text; {expected}")
    else:
        try:
            unit = parse_unit(text)
        except UnitError as error:
            complain(f"{error}; {expected}")
        else:
            if unit.dimension == field.dimension:
                return unit.factor, "" if text == "1" else f" {text}"
            complain(f"unit '{text}' is {_what(text)}, {expected}")
    return None, ""


def _what(unit: str) -> str:
    words = describe_dimension(parse_unit(unit).dimension)
    return "an amount of bytes" if words == "bytes" else words


def _number(raw: Mapping[str, Any], key: str, complain: Callable[..., None], path: str) -> float | None:
    if key not in raw:
        if key == "value":
            complain("is missing", f"{path}.value")
        return None
    number = raw[key]
    if isinstance(number, bool) or not isinstance(number, int | float):
        complain(f"{number!r} is no number", f"{path}.{key}")
        return None
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        complain(f"{raw[key]!r} is not finite", f"{path}.{key}")
        return None
    return number


def _date(raw: Mapping[str, Any], field: Field, complain: Callable[..., None], path: str) -> str | None:
    said = raw.get("date")
    if said is None:
        if field.dated:
            complain('is missing: this value changes with time; write date = "2024-12-01", say', f"{path}.date")
        return None
    if isinstance(said, datetime.datetime):
        return said.date().isoformat()
    if isinstance(said, datetime.date):
        return said.isoformat()
    try:
        return datetime.date.fromisoformat(said).isoformat()
    except (TypeError, ValueError):
        complain(f"{said!r} is no date such as 2024-12-01", f"{path}.date")
        return None
