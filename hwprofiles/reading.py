"""From a TOML table to dataclasses: every check of a profile, and all problems of a file at once.

The functions here append ``(file, field, problem)`` to a list and go on, so that one message can name everything that
is wrong.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ProfileError
from .cluster import Cluster, Region
from .defaults import DEFAULTS
from .fields import FIELDS, PARTS, TEXTS, Field, Text
from .profile import PRECISIONS, Device, Link, Node, Quantity
from .relations import broken_relations
from .units import EXAMPLE_UNIT
from .values import Problem, complain_of_unknown_keys, path_of, read_quantity, read_text

__all__ = ["FORMAT", "Problem", "Resolve", "Value", "parse_file", "read_profile"]

FORMAT = 1
MOST_BYTES = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+:()-]{0,79}")


Value = Device | Link | Node | Cluster | Region
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
            Problem(file, path_of(where, "name"), f"{name!r}: letters, digits and ' ._+:()-' only, 80 at most")
        )
    if kind == "cluster":
        values["n_nodes"] = _whole(table, "n_nodes", file, where, problems)
    for field in FIELDS[kind]:
        found = _field(table, field, file, where, problems)
        if found is not None:
            values[field.attribute] = found
    for key, part, required in PARTS[kind]:
        if key in table:
            values[key] = _part(table[key], part, file, path_of(where, key), problems, resolve)
        elif required:
            problems.append(Problem(file, path_of(where, key), f"is missing: the name of a {part}, or a table [{key}]"))
    if len(problems) > start:
        return None
    if kind == "device":
        values = DEFAULTS[values["kind"]] | values
    if kind == "cluster" and "region" in values:
        for attribute in ("energy_price_usd_per_j", "carbon_kg_per_j"):
            values.setdefault(attribute, getattr(values["region"], attribute))
    try:
        value = _MAKE[kind](**values)
    except ProfileError as error:
        problems.append(Problem(file, where, str(error)))
        return None
    broken = broken_relations(value)
    problems += [Problem(file, path_of(where, key), text) for key, text in broken]
    return None if broken else value


_MAKE: dict[str, Callable[..., Value]] = {
    "device": Device,
    "link": Link,
    "node": Node,
    "cluster": Cluster,
    "region": Region,
}


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
    complain_of_unknown_keys(table, known, f"a {kind}", file, where, problems)


def _field(
    table: Mapping[str, Any], field: Field, file: str, where: str, problems: list[Problem]
) -> Quantity | Mapping[str, Quantity] | None:
    key = field.older if field.older in table and field.key not in table else field.key
    path = path_of(where, key)
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
        return read_quantity(raw, field, file, path, problems)
    if not isinstance(raw, Mapping) or "value" in raw:
        problems.append(
            Problem(file, path, f"needs a value for each precision, such as {field.key}.float32 = {{ ... }}")
        )
        return None
    complain_of_unknown_keys(raw, list(PRECISIONS), f"{field.key}", file, path, problems)
    if field.required and not raw:
        problems.append(Problem(file, f"{path}.float32", "is missing, and so is every other precision"))
    pairs = {key: read_quantity(raw[key], field, file, f"{path}.{key}", problems) for key in PRECISIONS if key in raw}
    return {key: quantity for key, quantity in pairs.items() if quantity is not None}


def _by_ranks(raw: Any, field: Field, file: str, path: str, problems: list[Problem]) -> Mapping[str, Quantity] | None:
    if not isinstance(raw, Mapping) or not all(key.isdecimal() and int(key) >= 2 for key in raw):
        problems.append(
            Problem(file, path, f"needs a value for each number of ranks, such as {field.key}.4 = {{ ... }}")
        )
        return None
    pairs = {key: read_quantity(raw[key], field, file, f"{path}.{key}", problems) for key in raw}
    return {key: quantity for key, quantity in pairs.items() if quantity is not None}


def _part(raw: Any, kind: str, file: str, where: str, problems: list[Problem], resolve: Resolve) -> Value | None:
    if isinstance(raw, Mapping):
        return read_profile(raw, kind, file=file, where=where, problems=problems, resolve=resolve)
    if isinstance(raw, str):
        return resolve(kind, raw, file, where, problems)
    problems.append(Problem(file, where, f"is {raw!r}; it takes the name of a {kind}, or a table"))
    return None


def _said(
    table: Mapping[str, Any], text: Text, kind: str, file: str, where: str, problems: list[Problem]
) -> str | tuple[str, ...] | None:
    if text.many:
        texts = table.get(text.key, [])
        if isinstance(texts, list) and all(isinstance(one, str) and one.strip() for one in texts):
            return tuple(texts)
        problems.append(Problem(file, path_of(where, text.key), f'{texts!r} is no list of texts, such as ["A100"]'))
        return None
    said = read_text(table, text.key, text.required, file, where, problems)
    if said is not None and text.choices and said not in text.choices:
        expected = f"it is one of {', '.join(text.choices)}"
        problems.append(Problem(file, path_of(where, text.key), f"{said!r} is no {text.key} of a {kind}; {expected}"))
    return said


def _whole(table: Mapping[str, Any], key: str, file: str, where: str, problems: list[Problem]) -> int | None:
    value = table.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    problems.append(
        Problem(
            file, path_of(where, key), "is missing" if value is None else f"{value!r} is no whole number, such as 64"
        )
    )
    return None
