"""Profiles as rows for people: what there is, and what a cluster says of itself, value by value with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import ProfileError
from .cluster import Cluster
from .fields import FIELDS, PARTS, TEXTS
from .loader import SHIPPED, load_profile, profile_files
from .profile import Quantity
from .reading import Value
from .units import Dimension, format_value

__all__ = ["ProfileRow", "ValueRow", "describe", "list_profiles"]


class ProfileRow(NamedTuple):
    """One profile there is. `problem` holds the message where it cannot be read."""

    name: str
    kind: str
    summary: str
    path: str
    shipped: bool
    problem: str | None = None


class ValueRow(NamedTuple):
    """One value of a profile, as text for people."""

    field: str
    value: str
    source: str
    tier: str


def list_profiles() -> list[ProfileRow]:
    """Every cluster, device and region, the user's own first; one that cannot be read says why instead of raising."""
    rows = []
    for kind in ("cluster", "device", "region"):
        for name, path in profile_files(kind):
            problem = None
            try:
                value = load_profile(path)
                summary = _cluster_summary(value) if isinstance(value, Cluster) else value.description
            except ProfileError as error:
                summary, problem = "cannot be read", str(error)
            rows.append(ProfileRow(name, kind, summary, str(path), path.is_relative_to(SHIPPED), problem))
    return rows


def describe(value: Value) -> list[ValueRow]:
    """Every value of a profile and of the profiles that it holds (node, device, links); what is not known says so."""
    rows = []
    if isinstance(value, Cluster):
        shape = f"{value.n_nodes} nodes of {value.devices_per_node} devices"
        rows.append(ValueRow("n_nodes", f"{value.n_nodes} ({shape}: {value.n_devices})", "the profile's size", ""))
    _describe(value, type(value).__name__.lower(), "", rows)
    return rows


def _describe(value: Any, kind: str, where: str, rows: list[ValueRow]) -> None:
    for text in TEXTS[kind]:
        said = getattr(value, text.key)
        if said and (where or text.key not in ("name", "description")):
            rows.append(ValueRow(f"{where}{text.key}", said if isinstance(said, str) else ", ".join(said), "", ""))
    for field in FIELDS[kind]:
        held = getattr(value, field.attribute)
        path = f"{where}{field.key}"
        if isinstance(held, Mapping):
            rows += [_row(f"{path}.{key}", one, field.dimension) for key, one in held.items()]
        elif held is None:
            rows.append(ValueRow(path, "unavailable", "", ""))
        else:
            rows.append(_row(path, held, field.dimension))
    for key, part, _ in PARTS[kind]:
        held = getattr(value, key)
        if held is not None and part == "region":
            # Its values stand with the cluster's, which took them over.
            rows.append(ValueRow(key, f"{held.name}: {held.description}", "", ""))
        elif held is not None:
            _describe(held, part, f"{where}{key}.", rows)


def _row(path: str, quantity: Quantity, dimension: Dimension) -> ValueRow:
    text = format_value(quantity.value, dimension)
    if quantity.low is not None and quantity.high is not None:
        text += f" ({format_value(quantity.low, dimension)} to {format_value(quantity.high, dimension)})"
    source = f"{quantity.source}, {quantity.date}" if quantity.date else quantity.source
    return ValueRow(path, text, source, quantity.tier)


def _cluster_summary(cluster: Cluster) -> str:
    device = cluster.device
    many = "" if cluster.devices_per_node == 1 else f" of {cluster.devices_per_node}"
    nodes = "1 node" if cluster.n_nodes == 1 else f"{cluster.n_nodes} nodes"
    return f"{nodes}{many} × {device.name}: {cluster.n_devices} devices"
