"""Finding profiles by name or path, and reading them.

Profiles are searched in the user's folder (``$HPDLF_PROFILES``, else ``~/.config/hpdlf/profiles``) and then among
those shipped. A name may end in the number of nodes, ``dgx-a100:16``, or of nodes and devices in each,
``generic-x86:1x4``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from ..errors import ProfileError
from .fields import FOLDERS
from .cluster import Cluster
from .profile import Device, Link
from .reading import Problem, Resolve, Value, parse_file, read_profile

__all__ = ["SHIPPED", "cluster_from_toml", "load_cluster", "load_device", "load_link", "profile_files", "user_folder"]

SHIPPED = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SIZE = re.compile(r"(?P<name>.+):(?P<nodes>[0-9]+)(?:x(?P<devices>[0-9]+))?")
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
    return cluster.with_nodes(int(size["nodes"]), int(size["devices"]) if size["devices"] else None)


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """The device of this name or in this TOML file; a cluster's name stands for its device (``local``).

    >>> load_device("A100-SXM-40").kind
    'gpu'
    """
    text = os.fspath(name_or_path)
    if not _is_path(text) and _find("device", text, _roots()) is None and _find("cluster", text, _roots()) is not None:
        return load_cluster(text).device
    return cast(Device, _load("device", text))


def load_link(name_or_path: str | os.PathLike[str]) -> Link:
    """The link of this name or in this TOML file.

    >>> load_link("nvlink3").fabric
    'nvlink'
    """
    return cast(Link, _load("link", os.fspath(name_or_path)))


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
    close = get_close_matches(name.lower(), [n.lower() for n in known], n=1, cutoff=0.5)
    hint = f"did you mean '{next(n for n in known if n.lower() == close[0])}'? " if close else ""
    return (
        f"there is no {kind} '{name}'; {hint}There are {', '.join(known)} (`hpdlf profile list`), or give a .toml file"
    )


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
