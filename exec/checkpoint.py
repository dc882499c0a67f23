"""Checkpoints that no plan owns: named tensors, so that any number of stages and ranks can take them up.

    FOLDER/step-00000200/stage0.1f0a….safetensors    one shard per pipeline stage, named by its content
    FOLDER/step-00000200/manifest.json               written last: without it the checkpoint does not exist

Names are ``parameter/NAME``, ``state/NAME`` and ``opt/…`` (see :func:`pack`). Who writes: in every stage the rank with
data coordinate 0 calls :func:`write_shard`; when all have, one rank calls :func:`write_manifest` with what they
returned. Every file appears by renaming a finished and synced one, and a manifest only ever names files that are
already there, so a crash or a full disk at any moment leaves the checkpoint before intact.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError
from .hashing import sha256_of_file
from .optimizer_state import pack, packed_names, unpack
from .tensor_files import write_tensors

__all__ = [
    "Checkpoint",
    "Shard",
    "checkpoints",
    "latest",
    "pack",
    "packed_names",
    "remove_incomplete",
    "unpack",
    "write_manifest",
    "write_shard",
]

FORMAT = "hpdlf.checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step-(\d{8,})")
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One written file of a checkpoint, by its name in the checkpoint's folder, and the tensors in it."""

    file: str
    nbytes: int
    sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint after `step` updates. `skipped` says which newer ones were passed over, and why."""

    path: Path
    step: int
    epoch: int
    seed: int
    plan_sha256: str
    shards: tuple[Shard, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @cached_property
    def _where(self) -> Mapping[str, Shard]:
        return {name: shard for shard in reversed(self.shards) for name in shard.tensors}

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors in it, sorted."""
        return tuple(sorted(self._where))

    def read(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The named tensors (default: all). Only they are read from the files, which are memory-mapped.

        Raises:
            RunError: a tensor is not in the checkpoint, or a file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        wanted = list(self.names if names is None else names)
        missing = [name for name in wanted if name not in self._where]
        if missing:
            raise RunError(
                f"{self.path} has no "
                f"{', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}: it is a "
                "checkpoint of another model or optimiser. Train into a new folder (`--out`), without `--resume`."
            )
        values: dict[str, np.ndarray] = {}
        for shard in self.shards:
            here = [name for name in wanted if self._where[name] is shard]
            if not here:
                continue
            try:
                with safe_open(self.path / shard.file, framework="np") as file:
                    values.update((name, file.get_tensor(name)) for name in here)
            except (SafetensorError, OSError) as error:
                raise RunError(
                    f"{self.path / shard.file} is damaged ({error}). Remove {self.path} and `--resume` from the "
                    "checkpoint before."
                ) from None
        return {name: values[name] for name in wanted}

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            RunError: a file is not what was written.
        """
        for shard in self.shards:
            file = self.path / shard.file
            if sha256_of_file(file) != shard.sha256:
                raise RunError(
                    f"{file} is not what was written. Remove {self.path} and `--resume` from the checkpoint before."
                )


# --- writing ----------------------------------------------------------------------------------------------------------


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def write_shard(folder: Path, *, step: int, name: str, tensors: Mapping[str, np.ndarray]) -> Shard:
    """Write one stage's tensors for the checkpoint after `step` updates. Nothing refers to them until the manifest
    does.

    Raises:
        RunError: the disk is full, or cannot be written to; nothing of this shard is left behind.
    """
    target = _folder(folder, step)
    part = target / f".{name}.{os.getpid()}.part"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            nbytes, sha256 = write_tensors(file, tensors)
            file.flush()
            os.fsync(file.fileno())
        final = target / f"{name}.{sha256[:16]}.safetensors"
        os.replace(part, final)
        _sync(target)
    except OSError as error:
        _discard(part)
        raise _failure(error, folder, step, sum(np.asarray(t).nbytes for t in tensors.values())) from None
    except BaseException:
        _discard(part)
        raise
    return Shard(file=final.name, nbytes=nbytes, sha256=sha256, tensors=tuple(tensors))


def write_manifest(
    folder: Path,
    *,
    step: int,
    epoch: int,
    seed: int,
    plan_sha256: str,
    shards: Sequence[Shard],
    about: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Make the checkpoint exist, then remove all but the newest `keep`. `about` holds plain values.

    Raises:
        RunError: the disk is full, or cannot be written to; the checkpoints before stay.
    """
    target = _folder(folder, step)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "epoch": epoch,
        "seed": seed,
        "plan_sha256": plan_sha256,
        "shards": [asdict(s) for s in shards],
        "about": dict(about or {}),
    }
    part = target / f".{MANIFEST}.{os.getpid()}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target / MANIFEST)
        _sync(target)
        _sync(folder)
    except OSError as error:
        _discard(part)
        if not (target / MANIFEST).is_file():
            shutil.rmtree(target, ignore_errors=True)
        raise _failure(error, folder, step, 0) from None
    except BaseException:
        _discard(part)
        raise
    named = {MANIFEST, *(s.file for s in shards)}
    for stale in target.iterdir():
        if stale.name not in named:
            _discard(stale)
    complete = sorted(path for path in _numbered(folder) if (path / MANIFEST).is_file())
    for old in complete[:-keep]:
        _remove(old)
    return target


def _failure(error: OSError, folder: Path, step: int, nbytes: int) -> RunError:
    why = _FULL.get(error.errno or 0, error.strerror or str(error))
    size = f" of {nbytes / 1e6:,.1f} MB" if nbytes else ""
    kept = latest(folder)
    before = f"The checkpoint after step {kept.step} is intact" if kept else "There is no checkpoint before it"
    mend = "free some space" if error.errno in _FULL else "make the folder writable"
    return RunError(
        f"The checkpoint{size} after step {step} cannot be written to {folder}: {why}. {before}; {mend} and go on with "
        "`hpdlf train PLAN --out RUN --resume`."
    )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    """Remove a file, and its folder if nothing else is in it; other ranks may be doing the same."""
    try:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
    except OSError:
        return


def _remove(folder: Path) -> None:
    """The manifest first: what is left of an interrupted removal is no checkpoint."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_incomplete(folder: Path) -> list[Path]:
    """Remove what an interrupted run left half-written, and say what that was. Call it while no rank runs."""
    removed = []
    for path in _numbered(folder):
        if not (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
            continue
        parts = [p for p in path.iterdir() if p.name.endswith(".part")]
        for part in parts:
            part.unlink(missing_ok=True)
        removed += parts
    return removed


# --- reading ----------------------------------------------------------------------------------------------------------


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (p for p in folder.iterdir() if FOLDER_NAME.fullmatch(p.name)), key=lambda p: int(p.name.removeprefix("step-"))
    )


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in `folder`, oldest first. What is damaged is told in `skipped` of the one before."""
    found: list[Checkpoint] = []
    skipped: list[str] = []
    for path in reversed(_numbered(folder)):
        if not (path / MANIFEST).is_file():
            continue
        loaded = _load(path, tuple(skipped))
        if isinstance(loaded, str):
            skipped.append(loaded)
        else:
            found.append(loaded)
    return found[::-1]


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, None if there is none. Whoever resumes should print its `skipped`."""
    return next(reversed(checkpoints(folder)), None)


def _load(path: Path, skipped: tuple[str, ...]) -> Checkpoint | str:
    """The checkpoint, or why it cannot be used."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return f"{path} is no hpdlf checkpoint"
        if content["version"] > VERSION:
            version = content["version"]
            return f"{path} has format {version}, this hpdlf reads up to {VERSION}: `pip install --upgrade hpdlf`"
        shards = tuple(Shard(**{**s, "tensors": tuple(s["tensors"])}) for s in content["shards"])
        loaded = Checkpoint(
            path=path,
            shards=shards,
            skipped=skipped,
            **{key: content[key] for key in ("step", "epoch", "seed", "plan_sha256", "about")},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path / MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for shard in shards:
        file = path / shard.file
        if Path(shard.file).name != shard.file:
            return f"{path / MANIFEST} names a file outside its folder: {shard.file!r}"
        size = file.stat().st_size if file.is_file() else 0
        if size != shard.nbytes:
            return f"{file} has {size} bytes of {shard.nbytes}"
    return loaded
