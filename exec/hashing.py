"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError

__all__ = ["sha256_of_file", "sha256_of_files"]


def sha256_of_file(path: Path) -> str:
    """The file's hash, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """The hash of one file, or over the sorted names and hashes of several.

    Raises:
        DataError: one cannot be read.
    """
    try:
        hashes = {name: sha256_of_file(path) for name, path in files.items()}
    except OSError as error:
        raise DataError(f"{error.filename}: the data cannot be read: {error.strerror}.") from None
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
