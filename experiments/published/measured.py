"""A measured time of a published table, as what a device was asked to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import DataError
from ...models.cost.operation import Operation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Measured", "product", "read_table", "streamed"]


class Measured(NamedTuple):
    """`seconds` that `device` (as the table spells it) took for `operations`, one after the other, under the software
    `context` (of :data:`hpdlf.models.cost.features.CONTEXTS`).

    op      what the table calls it; rows of a report are per file, device and op
    where   which row of the table
    group   names what is kept together when parts are left out: a source's own split or a region of shapes
    """

    file: str
    device: str
    op: str
    context: str
    operations: tuple[Operation, ...]
    seconds: float
    where: int
    group: str = ""


def read_table(folder: Path, name: str, columns: Iterable[str]) -> pd.DataFrame | None:
    """The table `name` of a data folder; None where it is not there.

    Raises:
        DataError: it cannot be read, or columns are missing.
    """
    import pandas as pd

    path = folder / name
    if not path.exists():
        return None
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}). It should be laid out as its README says.") from None
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. "
            "It should be laid out as its README says."
        )
    return table


def product(
    batch: int, m: int, n: int, k: int, *, op: str = "linear", precision: str = "float32", item: float = 4.0,
    out_item: float | None = None, phase: str = "forward", family: str = "matmul", count: int = 1,
) -> Operation:  # fmt: skip
    """`batch` products of (m x k) by (k x n), operands and result of `item` bytes an element (the result of `out_item`)."""
    return Operation(
        family=family,
        op=op,
        dims=(batch, m, n, k),
        flops=2.0 * batch * m * n * k,
        read_bytes=item * batch * (m * k + k * n),
        write_bytes=(out_item or item) * batch * m * n,
        phase=phase,
        precision=precision,
        item_bytes=max(int(item), 1),
        count=count,
    )


def streamed(
    family: str, op: str, rows: int, columns: int, *, reads: float = 1.0, writes: float = 1.0, flops: float = 1.0,
    item: int = 4, phase: str = "forward",
) -> Operation:  # fmt: skip
    """An operation that reads and writes `reads` and `writes` tensors of rows x columns and does `flops` an element."""
    elements = float(rows) * columns
    return Operation(
        family=family,
        op=op,
        dims=(rows, columns),
        flops=flops * elements,
        read_bytes=reads * elements * item,
        write_bytes=writes * elements * item,
        phase=phase,
        item_bytes=item,
    )


def positive(measured: Iterable[Measured]) -> Iterator[Measured]:
    """Those that say how long something took: a table's gaps are no measurements."""
    return (m for m in measured if m.seconds > 0)
