"""From a TOML table to dataclasses: every check of a profile, and all problems of a file at once.

The functions here append ``(file, field, problem)`` to a list and go on, so that one message can name everything that
is wrong.
"""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ProfileError
from .defaults import DEFAULTS
from .fields import FIELDS, PARTS, TEXTS, Field, Text
from .cluster import Cluster
from .profile import PRECISIONS, TIERS, Device, Link, Node, Quantity
from .units import AMOUNT, EXAMPLE_UNIT, SI_UNIT, UnitError, describe_dimension, format_value, parse_unit, to_si

__all__ = ["FORMAT", "Problem", "Resolve", "Value", "parse_file", "read_profile"]

FORMAT = 1
MOST_BYTES = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+:()-]{0,79}")
_QUANTITY_KEYS = ("value", "unit", "source", "tier", "low", "high", "date")


class Problem(NamedTuple):
    """One thing that is wrong with a file, and the field where."""

    file: str
    where: str
    text: str


Value = Device | Link | Node | Cluster
# Finds a part by kind and name, or None after adding what is wrong: (kind, name, file, where, problems).
Resolve = Callable[[str, str, str, str, list[Problem]], Value | None]


def parse_file(path: Path, problems: list[Problem]) -> Mapping[str, Any] | None:
    """The file's TOML; None after adding what is wrong with it."""
    file = str(path)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            problems.append(Problem(file, "", f"is {size:,} bytes long; a profile has less than {MOST_BYTES:,}"))
            return None
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except UnicodeDecodeError:
        problems.append(Problem(file, "", "is no text in UTF-8, so it is no TOML"))
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(file, "", f"is no TOML: {error}"))
    except RecursionError:
        problems.append(Problem(file, "", "is no TOML of a profile: it is nested too deeply"))
    except OSError as error:
        problems.append(Problem(file, "", f"cannot be read: {error.strerror}"))
    else:
        if table:
            return table
        problems.append(
            Problem(file, "", 'is empty; a profile begins with `format = 1` and `profile = "cluster"`, say')
        )
    return None


def read_profile(
    table: Mapping[str, Any], kind: str, *, file: str, where: str, problems: list[Problem], resolve: Resolve
) -> Value | None:
    """The device, link, node or cluster that `table` describes; None if anything in it is wrong (see `problems`).

    `where` is the path of the table in the file, "" for the file itself, which must carry `format` and `profile`.
    """
    start = len(problems)
    values: dict[str, Any] = {}
    _check_keys(table, kind, file, where, problems)
    if not where:
        _check_header(table, kind, file, problems)
    for text in TEXTS[kind]:
        said = _said(table, text, kind, file, where, problems)
        if said is not None:
            values[text.key] = said
    name = values.get("name")
    if name is not None and not NAME.fullmatch(name):
        problems.append(
            Problem(file, _path(where, "name"), f"{name!r}: letters, digits and ' ._+:()-' only, 80 at most")
        )
    if kind == "cluster":
        values["n_nodes"] = _whole(table, "n_nodes", file, where, problems)
    for field in FIELDS[kind]:
        found = _field(table, field, file, where, problems)
        if found is not None:
            values[field.attribute] = found
    for key, part, required in PARTS[kind]:
        if key in table:
            values[key] = _part(table[key], part, file, _path(where, key), problems, resolve)
        elif required:
            problems.append(Problem(file, _path(where, key), f"is missing: the name of a {part}, or a table [{key}]"))
    if len(problems) > start:
        return None
    if kind == "device":
        values = DEFAULTS[values["kind"]] | values
    make: dict[str, Callable[..., Value]] = {"device": Device, "link": Link, "node": Node, "cluster": Cluster}
    try:
        return make[kind](**values)
    except ProfileError as error:
        problems.append(Problem(file, where, str(error)))
        return None


def _check_header(table: Mapping[str, Any], kind: str, file: str, problems: list[Problem]) -> None:
    form = table.get("format")
    if form != FORMAT or isinstance(form, bool):
        if isinstance(form, int) and form > FORMAT:
            text = f"{form} is newer than this hpdlf, which reads format {FORMAT}; update hpdlf"
        else:
            text = f"must be {FORMAT}, is {form!r}" if "format" in table else f"is missing; write `format = {FORMAT}`"
        problems.append(Problem(file, "format", text))
    said = table.get("profile")
    if said != kind:
        text = (
            f"is {said!r}, but a {kind} is wanted here"
            if "profile" in table
            else f'is missing; write `profile = "{kind}"`'
        )
        problems.append(Problem(file, "profile", text))


def _check_keys(table: Mapping[str, Any], kind: str, file: str, where: str, problems: list[Problem]) -> None:
    known = [*(t.key for t in TEXTS[kind]), *(f.key for f in FIELDS[kind]), *(key for key, _, _ in PARTS[kind])]
    known += ["n_nodes"] if kind == "cluster" else []
    if not where:
        known += ["format", "profile"]
    table = {key: value for key, value in table.items() if key not in {f.older for f in FIELDS[kind]}}
    _unknown_keys(table, known, f"a {kind}", file, where, problems)


def _unknown_keys(
    table: Mapping[str, Any], known: list[str], owner: str, file: str, where: str, problems: list[Problem]
) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            problems.append(Problem(file, _path(where, key), f"is no field of {owner}; {hint}"))


def _field(
    table: Mapping[str, Any], field: Field, file: str, where: str, problems: list[Problem]
) -> Quantity | Mapping[str, Quantity] | None:
    key = field.older if field.older in table and field.key not in table else field.key
    path = _path(where, key)
    if key not in table:
        if field.required:
            example = f'{{ value = ..., unit = "{EXAMPLE_UNIT[field.dimension]}", source = "...", tier = "datasheet" }}'
            if field.by_precision:
                problems.append(
                    Problem(file, f"{path}.float32", f"is missing; write float32 = {example} under [{path}]")
                )
            else:
                problems.append(Problem(file, path, f"is missing; write {field.key} = {example}"))
        return None
    raw = table[key]
    if field.by_ranks:
        return _by_ranks(raw, field, file, path, problems)
    if not field.by_precision:
        return _quantity(raw, field, file, path, problems)
    if not isinstance(raw, Mapping) or "value" in raw:
        problems.append(
            Problem(file, path, f"needs a value for each precision, such as {field.key}.float32 = {{ ... }}")
        )
        return None
    _unknown_keys(raw, list(PRECISIONS), f"{field.key}", file, path, problems)
    if field.required and "float32" not in raw:
        problems.append(Problem(file, f"{path}.float32", "is missing; every device computes in float32"))
    pairs = {key: _quantity(raw[key], field, file, f"{path}.{key}", problems) for key in PRECISIONS if key in raw}
    return {key: quantity for key, quantity in pairs.items() if quantity is not None}


def _by_ranks(raw: Any, field: Field, file: str, path: str, problems: list[Problem]) -> Mapping[str, Quantity] | None:
    if not isinstance(raw, Mapping) or not all(key.isdecimal() and int(key) >= 2 for key in raw):
        problems.append(Problem(file, path, f"needs a value for each number of ranks, such as {field.key}.4 = {{ ... }}"))
        return None
    pairs = {key: _quantity(raw[key], field, file, f"{path}.{key}", problems) for key in raw}
    return {key: quantity for key, quantity in pairs.items() if quantity is not None}


def _quantity(raw: Any, field: Field, file: str, path: str, problems: list[Problem]) -> Quantity | None:
    def complain(text: str, at: str = path) -> None:
        problems.append(Problem(file, at, text))

    start = len(problems)
    unit_example = EXAMPLE_UNIT[field.dimension]
    if not isinstance(raw, Mapping):
        unit = "" if field.dimension == AMOUNT else f'unit = "{unit_example}", '
        complain(f'is {raw!r} without a source; write {{ value = {raw!r}, {unit}source = "...", tier = "measured" }}')
        return None
    _unknown_keys(raw, list(_QUANTITY_KEYS), "a value", file, path, problems)
    source = _text(raw, "source", True, file, path, problems)
    tier = _text(raw, "tier", True, file, path, problems)
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


def _part(raw: Any, kind: str, file: str, where: str, problems: list[Problem], resolve: Resolve) -> Value | None:
    if isinstance(raw, Mapping):
        return read_profile(raw, kind, file=file, where=where, problems=problems, resolve=resolve)
    if isinstance(raw, str):
        return resolve(kind, raw, file, where, problems)
    problems.append(Problem(file, where, f"is {raw!r}; it takes the name of a {kind}, or a table"))
    return None


def _text(
    table: Mapping[str, Any], key: str, required: bool, file: str, where: str, problems: list[Problem]
) -> str | None:
    value = table.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if value is not None:
        problems.append(Problem(file, _path(where, key), f"{value!r} is no text" if value != "" else "is empty"))
    elif required:
        hint = {"source": ": where does this number come from?", "tier": f": one of {', '.join(TIERS)}"}
        problems.append(Problem(file, _path(where, key), f"is missing{hint.get(key, '')}"))
    return None


def _said(
    table: Mapping[str, Any], text: Text, kind: str, file: str, where: str, problems: list[Problem]
) -> str | tuple[str, ...] | None:
    if text.many:
        texts = table.get(text.key, [])
        if isinstance(texts, list) and all(isinstance(one, str) and one.strip() for one in texts):
            return tuple(texts)
        problems.append(Problem(file, _path(where, text.key), f'{texts!r} is no list of texts, such as ["A100"]'))
        return None
    said = _text(table, text.key, text.required, file, where, problems)
    if said is not None and text.choices and said not in text.choices:
        expected = f"it is one of {', '.join(text.choices)}"
        problems.append(Problem(file, _path(where, text.key), f"{said!r} is no {text.key} of a {kind}; {expected}"))
    return said


def _whole(table: Mapping[str, Any], key: str, file: str, where: str, problems: list[Problem]) -> int | None:
    value = table.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    problems.append(
        Problem(file, _path(where, key), "is missing" if value is None else f"{value!r} is no whole number, such as 64")
    )
    return None


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
