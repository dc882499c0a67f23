"""``hpdlf tune``: measure which way computes each convolution fastest on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .console import print_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from ..models.cost.lowerings import Convolution
    from .tuning import Row, Tuning

__all__ = ["brief", "tune", "tuning_table"]

Samples = Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Samples that a rank computes at once.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of a rank (default: every CPU there is).")
]
Seconds = Annotated[float, typer.Option("--seconds", metavar="S", min=1, help="Time to measure for.")]
Again = Annotated[bool, typer.Option("--again", help="Measure what the database has once more.")]
Type = Annotated[str, typer.Option("--precision", help="float32, float64, bfloat16 or float16.")]
Rows = Annotated[int, typer.Option("--rows", metavar="N", min=1, help="How many choices to show.")]


def tune(
    model: o.Model,
    batch: Samples = 1,
    threads: Threads = None,
    seconds: Seconds = 170.0,
    precision: Type = "float32",
    again: Again = False,
    rows: Rows = 20,
    loss: o.Loss = "softmax_xent",
    allow_external: o.AllowExternal = None,
    database: o.Database = None,
    as_json: o.Json = False,
) -> None:
    """Measure the fastest way to compute each convolution here."""
    from .tuning import tune as run

    with _bar() as progress:
        found = run(
            model,
            batch=batch,
            threads=threads,
            seconds=seconds,
            dtype=precision,
            again=again,
            loss=loss,
            allow_external=allow_external or (),
            database=database,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dicts())
    else:
        show(*([tuning_table(found, rows=rows)] if found.rows else []), *sentences(found, model))
    if found.stopped:
        raise typer.Exit(1)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """What goes on, on the terminal and nowhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda text, done, total: bar.update(task, completed=done, total=total, description=text[:60])


def brief(conv: Convolution) -> str:
    """A shape for people, without what is usual.

    >>> from ..models.cost.lowerings import Convolution
    >>> brief(Convolution(samples=8, channels=3, filters=64, groups=1, size=(224, 224), kernel=(7, 7), strides=(2, 2),
    ...     dilations=(1, 1), pads=((3, 3), (3, 3)), output=(112, 112)))
    '3x224x224 to 64, 7x7/2'
    """

    def times(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    text = f"{times((conv.channels, *conv.size))} to {conv.filters}, {times(conv.kernel)}"
    for mark, values in (("/", conv.strides), (" dilated ", conv.dilations)):
        if set(values) != {1}:
            text += f"{mark}{values[0] if len(set(values)) == 1 else times(values)}"
    return text + (f", {conv.groups} groups" if conv.groups > 1 else "")


def tuning_table(found: Tuning, *, rows: int) -> Table:
    """The choices that take most of a step, the largest last, where people look first."""
    from rich.table import Table

    table = Table(title=f"{found.name}: {found.batch} samples on {found.threads} threads", title_justify="left")
    table.add_column("convolution", no_wrap=True)
    for name in ("layers", "direction", "way", "ms", "expected", "ms", "gain, ms"):
        table.add_column(name, no_wrap=True, justify="right" if name[-2:] == "ms" or name == "layers" else "left")
    for row in reversed(found.rows[:rows]):
        table.add_row(brief(row.conv), str(row.count), row.direction, row.hint.way, *_figures(row))
    return table


def _figures(row: Row) -> tuple[str, str, str, str]:
    def ms(seconds: float | None) -> str:
        return "open" if seconds is None else f"{seconds * 1e3:.3g}"

    gain = row.gain_s
    return (
        ms(row.hint.seconds),
        row.expected if row.expected != row.hint.way else "the same",
        "" if row.expected == row.hint.way else ms(row.expected_s),
        "" if not gain else f"{gain * 1e3:.3g}",
    )


def sentences(found: Tuning, model: Path) -> list[str]:
    """What it comes to."""
    if not found.rows:
        return [f"{found.name} has no convolutions, so there is nothing to choose."]
    told = []
    if len(found.rows) and found.chosen_s:
        less = 1 - found.chosen_s / found.expected_s
        told.append(
            f"The measured convolutions of a step take {found.chosen_s * 1e3:.3g} ms, {found.expected_s * 1e3:.3g} ms by the "
            f"ways that are expected to be fastest ({less:.0%} less)."
        )
    told.append(
        f"Measured {found.measured} choices in {found.seconds:.0f} s; {found.known} were known. They are in {found.database}."
    )
    told += [f"Could not be run: {text}." for text in found.failed]
    if found.open:
        why = "Stopped: " if found.stopped else ""
        told.append(f"{why}{found.open} choices are left. Run the command again to go on.")
    return told
