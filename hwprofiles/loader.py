"""Finding profiles by name or path, and reading them.

Profiles are searched in the user's folder (``$HPDLF_PROFILES``, else ``~/.config/hpdlf/profiles``) and then among
those shipped. A name may end in the number of nodes, ``dgx-a100:16``, of nodes and devices in each,
``generic-x86:1x4``, or of nodes, devices and cores in each device, ``generic-x86:1x1x4``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import cast

from ..errors import ProfileError
from .cluster import Cluster, Region
from .fields import FOLDERS
from .names import Known, match, nearest
from .profile import Device, Link
from .reading import Problem, Resolve, Value, parse_file, read_profile
from .units import UnitError, parse_unit

__all__ = [
    "SHIPPED",
    "cluster_from_toml",
    "find_device",
    "load_cluster",
    "load_device",
    "load_link",
    "load_profile",
    "load_region",
    "profile_files",
    "user_folder",
]

SHIPPED = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SIZE = re.compile(r"(?P<name>.+):(?P<nodes>[0-9]+)(?:x(?P<devices>[0-9]+)(?:x(?P<cores>[0-9]+))?)?")
MEASURED = "local"


def user_folder() -> Path:
    """Where measured and own profiles live: $HPDLF_PROFILES, or hpdlf/profiles in the user's configuration folder."""
    chosen = os.environ.get("HPDLF_PROFILES")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "hpdlf" / "profiles"


def load_cluster(name_or_path: str | os.PathLike[str]) -> Cluster:
    """The cluster of this name (``xeon-64``, ``dgx-a100:16``, ``generic-x86:1x4``) or in this TOML file.

    Raises ProfileError with everything that is wrong in the files it read, or the names that exist.

    >>> load_cluster("dgx-a100:16").n_devices
    128
    """
    text = os.fspath(name_or_path)
    size = _SIZE.fullmatch(text)
    if size is None or Path(text).exists():
        return cast(Cluster, _load("cluster", text))
    cluster = cast(Cluster, _load("cluster", size["name"]))
    sized = cluster.with_nodes(int(size["nodes"]), int(size["devices"]) if size["devices"] else None)
    return sized.with_cores(int(size["cores"])) if size["cores"] else sized


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """The device of this name or in this TOML file; a cluster's name stands for its device (``local``).

    >>> load_device("A100-SXM-40").kind
    'gpu'
    """
    text = os.fspath(name_or_path)
    if _is_path(text) or _find("device", text, _roots()) is not None:
        return cast(Device, _load("device", text))
    if _find("cluster", text, _roots()) is not None or text == MEASURED:
        return load_cluster(text).device
    return cast(Device, _load("device", find_device(text)))


def find_device(name: str) -> str:
    """The profile of the device that a published table calls `name`; the rule stands in :mod:`.names`.

    Raises ProfileError where the name is unknown or could mean several devices, with the nearest names.

    >>> find_device("NVIDIA A100-SXM4-80GB (400W)"), find_device("Tesla V100"), find_device("Intel Xeon Gold 6148")
    ('A100-SXM-80', 'V100-SXM2', 'Xeon-Gold-6148')
    """
    devices = _known_devices()
    found = match(name, devices)
    if found.name is not None:
        return found.name
    if found.candidates:
        raise ProfileError(f"device '{name}' could be {_either(found.candidates)}; say which")
    raise ProfileError(_no_such("device", name))


def load_region(name_or_path: str | os.PathLike[str]) -> Region:
    """The region of this name, of another name that it has, or in this TOML file.

    >>> load_region("DE").name
    'germany'
    """
    text = os.fspath(name_or_path)
    if _is_path(text):
        return cast(Region, _load("region", text))
    return _region_called(text) or cast(Region, _load("region", text.lower()))


def _region_called(name: str) -> Region | None:
    for stem, path in profile_files("region"):
        region = cast(Region, _load("region", str(path)))
        if name.lower() in (stem.lower(), *(one.lower() for one in region.aliases)):
            return region
    return None


def load_link(name_or_path: str | os.PathLike[str]) -> Link:
    """The link of this name or in this TOML file.

    >>> load_link("nvlink3").fabric
    'nvlink'
    """
    return cast(Link, _load("link", os.fspath(name_or_path)))


def load_profile(name_or_path: str | os.PathLike[str]) -> Value:
    """The profile of whatever kind in this TOML file, or of this name: a cluster, device, node, link or region.

    Raises ProfileError with everything that is wrong in the files it read, or the names that are near.

    >>> type(load_profile("nvlink3")).__name__, type(load_profile("Tesla T4")).__name__
    ('Link', 'Device')
    """
    text = os.fspath(name_or_path)
    if _is_path(text):
        table = parse_file(Path(text).expanduser(), []) if Path(text).expanduser().is_file() else None
        said = table.get("profile") if table else None
        return _load(said if isinstance(said, str) and said in FOLDERS else "cluster", text)
    size = _SIZE.fullmatch(text)
    name = size["name"] if size else text
    for kind in ("cluster", "device", "node", "link", "region"):
        if _find(kind, name, _roots()) is not None:
            return load_cluster(text) if kind == "cluster" else _load(kind, text)
    if match(text, devices := _known_devices()).candidates:
        return load_device(text)
    if (region := _region_called(text)) is not None:
        return region
    return load_cluster(text) if name == MEASURED or not nearest(text, devices) else load_device(text)


def cluster_from_toml(text: str, *, origin: str) -> Cluster:
    """The cluster in a self-contained text that Cluster.to_toml wrote; `origin` names the text in messages."""
    import tomllib

    problems: list[Problem] = []
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{origin}: is no TOML: {error}") from None
    value = read_profile(table, "cluster", file=origin, where="", problems=problems, resolve=_resolver(()))
    return cast(Cluster, _or_raise(value, problems))


def profile_files(kind: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every profile of a kind, the user's first, which hide the shipped of the same name."""
    seen = set()
    for root in _roots():
        for path in sorted((root / FOLDERS[kind]).glob("*.toml")):
            if path.stem not in seen:
                seen.add(path.stem)
                yield path.stem, path


def _known_devices() -> list[Known]:
    return [
        known for _, path in profile_files("device") if (known := _known(path, path.stat().st_mtime_ns)) is not None
    ]


@lru_cache(maxsize=1024)
def _known(path: Path, _: int) -> Known | None:
    """What a device's file says of its names; None where it cannot be read, which is told when the device is wanted."""
    table = parse_file(path, [])
    if table is None:
        return None
    aliases, memory = table.get("aliases", ()), table.get("memory", {})
    number, unit = (memory.get("value"), memory.get("unit")) if isinstance(memory, dict) else (None, None)
    memory_bytes = 0.0
    if isinstance(number, int | float) and isinstance(unit, str):
        try:
            memory_bytes = number * parse_unit(unit).factor
        except UnitError:
            return None
    facts = tuple(text for key in ("vendor", "architecture") if isinstance(text := table.get(key), str))
    names = tuple(one for one in aliases if isinstance(one, str)) if isinstance(aliases, list) else ()
    return Known(path.stem, names, round(memory_bytes / (2**30 if unit == "GiB" else 1e9)), facts)


def _either(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _load(kind: str, text: str) -> Value:
    problems: list[Problem] = []
    if _is_path(text):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ProfileError(
                f"{text}: there is no such profile file; `hpdlf profile list` shows the profiles there are"
            )
        near = path.resolve().parent
        roots = (near.parent, *_roots()) if near.name in FOLDERS.values() else (near, *_roots())
        value = _read_file(kind, path, roots, problems)
    else:
        value = _resolver(_roots())(kind, text, "", "", problems)
    return _or_raise(value, problems)


def _is_path(text: str) -> bool:
    return text.endswith(".toml") or os.sep in text or bool(os.altsep and os.altsep in text)


def _roots() -> tuple[Path, ...]:
    return (user_folder(), SHIPPED)


def _find(kind: str, name: str, roots: Iterable[Path]) -> Path | None:
    if _NAME.fullmatch(name):
        for root in roots:
            path = root / FOLDERS[kind] / f"{name}.toml"
            if path.is_file():
                return path
    return None


def _read_file(kind: str, path: Path, roots: tuple[Path, ...], problems: list[Problem]) -> Value | None:
    table = parse_file(path, problems)
    if table is None:
        return None
    return read_profile(table, kind, file=str(path), where="", problems=problems, resolve=_resolver(roots))


def _resolver(roots: tuple[Path, ...]) -> Resolve:
    def resolve(kind: str, name: str, file: str, where: str, problems: list[Problem]) -> Value | None:
        path = _find(kind, name, roots)
        if path is not None:
            return _read_file(kind, path, roots, problems)
        problems.append(Problem(file, where, _no_such(kind, name) if roots else f"is the name '{name}', not a table"))
        return None

    return resolve


def _no_such(kind: str, name: str) -> str:
    if kind == "cluster" and name == MEASURED:
        return (
            "this machine has not been measured yet: run `hpdlf profile measure` (about a minute), "
            "or use 'generic-x86', a cautious guess at a machine of two cores"
        )
    known = [known_name for known_name, _ in profile_files(kind)]
    if kind == "device":
        devices = _known_devices()
        near = match(name, devices).candidates or nearest(name, devices)
    else:
        spelt = {known_name.lower(): known_name for known_name in known}
        near = tuple(spelt[one] for one in get_close_matches(name.lower(), spelt, n=1, cutoff=0.5))
    hint = f"did you mean {_either(near)}? " if near else ""
    shown = f"There are {', '.join(known)}" if len(known) <= 8 else f"There are {len(known)}"
    return f"there is no {kind} '{name}'; {hint}{shown} (`hpdlf profile list`), or give a .toml file"


def _or_raise(value: Value | None, problems: list[Problem]) -> Value:
    if value is not None and not problems:
        return value
    files: dict[str, list[Problem]] = {}
    for problem in dict.fromkeys(problems):
        files.setdefault(problem.file, []).append(problem)
    if len(problems) == 1:
        only = problems[0]
        raise ProfileError(": ".join(part for part in (only.file, only.where, only.text) if part))
    lines = []
    for file, found in files.items():
        lines.append(f"{file}: {len(found)} problem{'s' if len(found) > 1 else ''}")
        lines += [f"  {p.where}: {p.text}" if p.where else f"  {p.text}" for p in found]
    raise ProfileError("\n".join(lines))
