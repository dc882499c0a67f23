"""Writing profiles: one self-contained TOML file for a cluster, in readable units that come back exactly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ProfileError
from .cluster import Cluster
from .fields import FIELDS, PARTS, TEXTS
from .profile import Quantity
from .reading import FORMAT
from .units import AMOUNT, SI_UNIT, Dimension, parse_unit, readable_units, to_si

__all__ = ["cluster_to_toml", "write_cluster"]


def cluster_to_toml(cluster: Cluster) -> str:
    """The cluster with its node, device and links as one TOML text."""
    lines = [f"format = {FORMAT}", 'profile = "cluster"']
    _write(cluster, "cluster", "", lines)
    return "\n".join(lines) + "\n"


def write_cluster(cluster: Cluster, path: str | os.PathLike[str]) -> Path:
    """Write the cluster to `path`: all of it or nothing, never half. Raises ProfileError if it cannot be written."""
    target = Path(path)
    text = cluster_to_toml(cluster)
    draft: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False
        ) as file:
            draft = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, target)
        draft = None
    except OSError as error:
        raise ProfileError(
            f"{target}: the profile cannot be written: {error.strerror}. Choose another folder by $HPDLF_PROFILES."
        ) from None
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
    return target


def _write(value: Any, kind: str, where: str, lines: list[str]) -> None:
    for text in TEXTS[kind]:
        said = getattr(value, text.key)
        if said:
            lines.append(f"{text.key} = {_texts(said) if text.many else _string(said)}")
    if kind == "cluster":
        lines.append(f"n_nodes = {value.n_nodes}")
    for field in FIELDS[kind]:
        held = getattr(value, field.attribute)
        if isinstance(held, Quantity):
            lines.append(f"{field.key} = {_quantity(held, field.dimension)}")
        elif isinstance(held, Mapping):
            # A dotted key keeps the precision on the line of its value and needs no table of its own.
            lines += [f"{field.key}.{key} = {_quantity(one, field.dimension)}" for key, one in held.items()]
    for key, part, _ in PARTS[kind]:
        held = getattr(value, key)
        if held is not None:
            path = f"{where}.{key}" if where else key
            lines += ["", f"[{path}]"]
            _write(held, part, path, lines)


def _quantity(quantity: Quantity, dimension: Dimension) -> str:
    numbers = {"value": quantity.value, "low": quantity.low, "high": quantity.high}
    present = {key: number for key, number in numbers.items() if number is not None}
    unit, scaled = _exact(present, dimension)
    parts = [f"value = {_number(scaled['value'])}"]
    if dimension != AMOUNT:
        parts.append(f"unit = {_string(unit)}")
    parts += [f"{key} = {_number(scaled[key])}" for key in ("low", "high") if key in scaled]
    parts += [f"source = {_string(quantity.source)}", f"tier = {_string(quantity.tier)}"]
    if quantity.date:
        parts.append(f"date = {_string(quantity.date)}")
    return f"{{ {', '.join(parts)} }}"


def _exact(numbers: Mapping[str, float], dimension: Dimension) -> tuple[str, Mapping[str, float]]:
    """The first readable unit from which every number comes back bit by bit, else the SI unit."""
    for unit in readable_units(dimension):
        factor = parse_unit(unit).factor
        if abs(numbers["value"]) < factor and unit != readable_units(dimension)[-1]:
            continue
        scaled = {key: _short(number / factor, factor, number) for key, number in numbers.items()}
        if all(to_si(scaled[key], factor) == number for key, number in numbers.items()):
            return unit, scaled
    return SI_UNIT[dimension], numbers


def _short(scaled: float, factor: float, number: float) -> float:
    """The scaled number with the fewest digits that still gives `number` back."""
    for digits in range(1, 17):
        candidate = float(f"{scaled:.{digits}g}")
        if to_si(candidate, factor) == number:
            return candidate
    return scaled


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _texts(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_string, texts))}]"


def _string(text: str) -> str:
    # A JSON string is a TOML string, but for the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
