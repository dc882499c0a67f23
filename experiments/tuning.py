"""The verb `tune`: measure which way computes each operator of a model fastest on this machine, and keep it in the database.

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
from ..models.cost.lowering_choice import MeasuredWays, choose, is_measured, measured_processor, measured_ways, observed
from ..models.cost.lowerings import Direction, Processor, Shape, expected_way, family_of, ways
from ..models.cost.lowerings_graph import computations, directions
from ..models.onnxpp import Graph, Onnxpp
from ..models.onnxpp.graph import item_bytes
from ..models.onnxpp.hints import Hint
from .hinting import EXECUTED, LOSS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Row", "Tuning", "keep_answers", "tune"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A direction of a shape, which the network has `count` times: the way that is taken, and the expected one.

    Times are of one call; `expected_s` is None where the expected way was not measured.
    """

    shape: Shape
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
    """What is known of a network's choices now.

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
        """What the measured operators of a step take as chosen."""
        return sum(r.count * r.hint.seconds for r in self.rows if r.hint.seconds is not None and r.gain_s is not None)

    @property
    def expected_s(self) -> float:
        """The same by the expected ways."""
        return self.chosen_s + sum(r.gain_s or 0.0 for r in self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a row, plain values."""
        return [
            {
                "shape": row.shape.key,
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
    """A direction of a shape that has several ways, and how often the network has it."""

    shape: Shape
    direction: Direction
    count: int = field(compare=False)

    @property
    def promise(self) -> float:
        """How much a measurement may gain, on no scale in particular."""
        return self.count * family_of(self.shape).promise(self.shape, self.direction)


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
    asked = [w for w in everything if again or not is_measured(w.shape, w.direction, before)]
    asked.sort(key=lambda w: -w.promise)
    on = measured_processor(Processor(threads=used), before, dtype=dtype)
    questions = [Question(shape=w.shape, direction=w.direction, first=_expected(w, on, dtype), dtype=dtype) for w in asked]
    answers: list[Answer] = []
    stopped = False
    try:
        left_s = seconds - (time.perf_counter() - start)
        for said in time_ways(questions, seconds=left_s, threads=threads) if questions else ():
            if isinstance(said, Answer):
                answers.append(said)
            if progress:
                question = said.question if isinstance(said, Answer) else said
                progress(question.shape.key, len(answers), len(asked))
    except KeyboardInterrupt:
        stopped = True
    finally:
        keep_answers(answers, store, graph.name, machine, used, dtype)
    measured = known_ways()
    return Tuning(
        name=graph.name,
        batch=batch,
        threads=used,
        rows=_rows(everything, measured, measured_processor(on, measured, dtype=dtype), dtype),
        measured=len(answers),
        known=len(everything) - len(asked),
        open=len(asked) - len(answers),
        has_loss=graph.loss is not None,
        failed=tuple(
            f"{a.question.shape.key}, {a.question.direction} by {way}: {why}"
            for a in answers
            for way, why in a.failed.items()
        ),
        seconds=time.perf_counter() - start,
        stopped=stopped,
        database=store.path,
    )


def _work(graph: Graph, batch: int) -> list[_Work]:
    """Every distinct direction of the graph's operators that has several ways."""
    shapes = computations(graph, samples=batch)
    counts: dict[tuple[Shape, Direction], int] = {}
    for name, wanted in directions(graph, shapes).items():
        for direction in wanted:
            if len(ways(shapes[name], direction)) > 1:
                counts[shapes[name], direction] = counts.get((shapes[name], direction), 0) + 1
    return [_Work(shape=shape, direction=direction, count=count) for (shape, direction), count in counts.items()]


def _expected(work: _Work, on: Processor, dtype: str) -> str:
    return expected_way(work.shape, work.direction, on, item_bytes=item_bytes(dtype))


def keep_answers(
    answers: list[Answer], store: ObservationDatabase, name: str, machine: Machine, threads: int, dtype: str
) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    store.add(
        observed(
            a.question.shape,
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


def _rows(everything: list[_Work], measured: MeasuredWays, on: Processor, dtype: str) -> tuple[Row, ...]:
    rows = []
    for work in everything:
        usual = _expected(work, on, dtype)
        timed = measured.get((work.shape.key, work.direction), {})
        rows.append(
            Row(
                shape=work.shape,
                direction=work.direction,
                count=work.count,
                hint=choose(work.shape, work.direction, measured, on, dtype=dtype),
                expected=usual,
                expected_s=timed[usual].seconds if usual in timed else None,
            )
        )
    return tuple(sorted(rows, key=lambda r: -r.count * (r.hint.seconds or 0.0)))
