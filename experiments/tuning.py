"""The verb `tune`: measure which way computes each convolution of a model fastest on this machine, and keep it in the database.

What a plan of the same machine, batch and threads says of lowering is measured from then on. Nothing is measured twice:
what the database holds is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..exec.environment import Machine, examine_machine
from ..exec.tuning import Answer, Question, cores_for, time_ways
from ..models.cost import ObservationDatabase
from ..models.cost.convolutions import convolutions, directions
from ..models.cost.lowering_choice import MeasuredWays, choose, is_measured, measured_ways, observed
from ..models.cost.lowerings import Convolution, Direction, expected_way
from ..models.onnxpp import Graph, Onnxpp
from ..models.onnxpp.hints import Hint
from .hinting import EXECUTED, LOSS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Row", "Tuning", "tune"]

# Of what others promise: a product is rarely beaten where it is all there is to do. A guess; the order depends on it alone.
GAIN_OF_PRODUCTS = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """A direction of a convolution, which the network has `count` times: the way that is taken, and the expected one.

    Times are of one call; `expected_s` is None where the expected way was not measured.
    """

    conv: Convolution
    direction: Direction
    count: int
    hint: Hint
    expected: str
    expected_s: float | None

    @property
    def gain_s(self) -> float | None:
        """What the choice saves in every step, over all of its layers."""
        if self.hint.seconds is None or self.expected_s is None:
            return None
        return self.count * (self.expected_s - self.hint.seconds)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is known of a network's convolutions now.

    rows       one for each distinct shape and direction, what takes most of a step first
    measured   shapes and directions that were measured this time; `known` those that the database held; `open` those left
    has_loss   whether there is one, and gradients with it; else the forward pass is all there is
    failed     ways that could not be run, in sentences
    stopped    whether somebody stopped it
    """

    name: str
    batch: int
    threads: int
    rows: tuple[Row, ...]
    measured: int
    known: int
    open: int
    has_loss: bool
    failed: tuple[str, ...]
    seconds: float
    stopped: bool
    database: Path

    @property
    def chosen_s(self) -> float:
        """What the measured convolutions of a step take as chosen."""
        return sum(r.count * r.hint.seconds for r in self.rows if r.hint.seconds is not None and r.gain_s is not None)

    @property
    def expected_s(self) -> float:
        """The same by the expected ways."""
        return self.chosen_s + sum(r.gain_s or 0.0 for r in self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a row, plain values."""
        return [
            {
                "shape": row.conv.key,
                "direction": row.direction,
                "count": row.count,
                "way": row.hint.way,
                "seconds": row.hint.seconds,
                "source": row.hint.source,
                "expected": row.expected,
                "expected_s": row.expected_s,
                "gain_s": row.gain_s,
            }
            for row in self.rows
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row a shape and direction, as :meth:`to_dicts`."""
        import pandas as pd

        return pd.DataFrame(self.to_dicts())


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A direction of a convolution, and how often the network has it."""

    conv: Convolution
    direction: Direction
    count: int = field(compare=False)

    @property
    def promise(self) -> float:
        """How much a measurement may gain, on no scale in particular."""
        share = GAIN_OF_PRODUCTS if expected_way(self.conv, self.direction) == "matmul" else 1.0
        return share * self.count * self.conv.flops


def tune(
    model: Onnxpp | str | Path,
    *,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 170.0,
    dtype: str = "float32",
    again: bool = False,
    loss: str | None = LOSS,
    allow_external: Iterable[str | Path] = (),
    bind: Mapping[str, int] | None = None,
    database: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tuning:
    """Measure the open choices of `model`, those that promise most first, for about `seconds`.

    batch      samples that a rank computes at once
    threads    of a rank; None: as many as this process may use
    again      measure what the database holds already once more
    progress   told of (the shape whose turn it is, questions answered, all)

    What was measured is in the database also where this is interrupted: a KeyboardInterrupt ends the measuring, and the result
    says so.

    Raises:
        PlanError: no such precision, or no time.
        RunError: there are not so many threads, or measuring failed.
        DataError: the database cannot be used.
    """
    from .verbs import load_model

    start = time.perf_counter()
    if dtype not in EXECUTED:
        raise PlanError(f"There is nothing to tune for in {dtype!r}: training runs in {' or '.join(EXECUTED)}.")
    if seconds <= 0 or batch < 1:
        raise PlanError(f"{seconds:g} seconds for a batch of {batch} cannot be: both are positive.")
    store = ObservationDatabase(Path(database)) if database else ObservationDatabase()
    machine = examine_machine()
    used = len(cores_for(threads))
    graph = load_model(model, loss=loss, allow_external=allow_external, bind=bind, loss_optional=True).graph
    everything = _work(graph, batch)

    def known_ways() -> MeasuredWays:
        return measured_ways(store, machine=machine.fingerprint, threads=used, dtype=dtype)

    before = known_ways()
    choices = [w for w in everything if not is_measured(w.conv, w.direction, {})]  # there are several ways
    asked = [w for w in choices if again or not is_measured(w.conv, w.direction, before)]
    asked.sort(key=lambda w: -w.promise)
    questions = [
        Question(conv=w.conv, direction=w.direction, first=expected_way(w.conv, w.direction), dtype=dtype)
        for w in asked
    ]
    answers: list[Answer] = []
    stopped = False
    try:
        left_s = seconds - (time.perf_counter() - start)
        for said in time_ways(questions, seconds=left_s, threads=threads) if questions else ():
            if isinstance(said, Answer):
                answers.append(said)
            if progress:
                progress(
                    said.question.conv.key if isinstance(said, Answer) else said.conv.key, len(answers), len(asked)
                )
    except KeyboardInterrupt:
        stopped = True
    finally:
        _keep(answers, store, graph.name, machine, used, dtype)
    measured = known_ways()
    return Tuning(
        name=graph.name,
        batch=batch,
        threads=used,
        rows=_rows(everything, measured, dtype),
        measured=len(answers),
        known=len(choices) - len(asked),
        open=len(asked) - len(answers),
        has_loss=graph.loss is not None,
        failed=tuple(
            f"{a.question.conv.key}, {a.question.direction} by {way}: {why}"
            for a in answers
            for way, why in a.failed.items()
        ),
        seconds=time.perf_counter() - start,
        stopped=stopped,
        database=store.path,
    )


def _work(graph: Graph, batch: int) -> list[_Work]:
    """Every distinct direction of the graph's convolutions."""
    wanted = directions(graph)
    counts: dict[tuple[Convolution, Direction], int] = {}
    for name, conv in convolutions(graph, samples=batch).items():
        for direction in wanted[name]:
            counts[conv, direction] = counts.get((conv, direction), 0) + 1
    return [_Work(conv=conv, direction=direction, count=count) for (conv, direction), count in counts.items()]


def _keep(
    answers: list[Answer], store: ObservationDatabase, name: str, machine: Machine, threads: int, dtype: str
) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    store.add(
        observed(
            a.question.conv,
            a.question.direction,
            way,
            seconds=found["seconds"],
            low_s=found["low_s"],
            high_s=found["high_s"],
            repeats=int(found["repeats"]),
            cpu=machine.cpu,
            machine=machine.fingerprint,
            host=machine.name,
            threads=threads,
            dtype=dtype,
            run=f"tune {name} {threads} threads {now}",
            time=now,
        )
        for a in answers
        for way, found in a.ways.items()
    )


def _rows(everything: list[_Work], measured: MeasuredWays, dtype: str) -> tuple[Row, ...]:
    rows = []
    for work in everything:
        usual = expected_way(work.conv, work.direction)
        timed = measured.get((work.conv.key, work.direction), {})
        rows.append(
            Row(
                conv=work.conv,
                direction=work.direction,
                count=work.count,
                hint=choose(work.conv, work.direction, measured, dtype=dtype),
                expected=usual,
                expected_s=timed[usual].seconds if usual in timed else None,
            )
        )
    return tuple(sorted(rows, key=lambda r: -r.count * (r.hint.seconds or 0.0)))
