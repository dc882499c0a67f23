"""Timing the ways to compute what has several on this machine: what `hpdlf tune` runs, in a process of its own.

``python -m hpdlf.exec.tuning QUESTIONS`` has the environment that ranks get (the allocator decides, see
:func:`.environment.rank_environment`) and the cores that the threads are for. It reads questions, a shape and a direction each,
and prints an answer to each as a JSON line: the times of all ways, as :func:`.microbenchmarks_compute.summarise` gives them.

Every way is compiled alone; :mod:`.tuning_cases` has what is computed. A way whose first calls take over twice the best is
timed no further. Those that are close to the best are timed again in turns, since other work on the machine seldom disturbs all
alike.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import RunError
from ..models.cost.lowerings import Convolution, Direction, Shape, family_of, shape_from, ways
from .affinity import allowed_cpus, usable_cores
from .environment import rank_environment
from .microbenchmarks_compute import sample, summarise
from .microbenchmarks_processes import json_lines

__all__ = ["Answer", "Question", "answer", "call_of", "cores_for", "time_ways"]

BURST_S = 0.06
MOST_BURSTS, AGREE = 3, 1.03
# Beyond these times the best a way is out of the race: after a long call, after a few, after a burst.
HOPELESS, SLOW, CLOSE = 8.0, 2.0, 1.25
# The first call finds cold caches and memory that was never touched: of short calls it tells nothing.
LONG_S, WARM_S, FEW = 0.1, 0.01, 4
STARTING_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which way computes a direction of a shape fastest? `first` is timed first, and should be a good one."""

    shape: Shape
    direction: Direction
    first: str
    dtype: str = "float32"

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "family": family_of(self.shape).name}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Question:
        """From such values, as JSON gives them."""
        fields = {name: value for name, value in said.items() if name != "family"}
        return cls(**{**fields, "shape": shape_from(said["family"], said["shape"])})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found.

    ways    each with `seconds` (the median), `low_s`, `high_s` and `repeats`
    failed  ways that could not be run, and why
    """

    question: Question
    ways: Mapping[str, Mapping[str, float]]
    failed: Mapping[str, str]


def cores_for(threads: int | None) -> list[int]:
    """The logical CPUs for so many threads, one of each physical core first; None: all that this process may use.

    Raises:
        RunError: there are not so many.
    """
    allowed = allowed_cpus()
    count = len(allowed) if threads is None else threads
    if not 1 <= count <= len(allowed):
        raise RunError(f"{threads} threads cannot be measured: this process may use {len(allowed)} CPUs.")
    physical = usable_cores()
    ordered = [*physical, *(cpu for cpu in allowed if cpu not in physical)]
    return sorted(ordered[:count])


def time_ways(
    questions: Sequence[Question], *, seconds: float, threads: int | None = None
) -> Iterator[Answer | Question]:
    """Each question when its turn comes, then its answer; those whose turn does not come in `seconds` are left out.

    However this ends, the measuring process does not outlive it.

    Raises:
        RunError: there are not so many threads, or measuring failed.
    """
    cores = cores_for(threads)
    with tempfile.TemporaryDirectory(prefix="hpdlf-tune-") as folder:
        asked = Path(folder) / "questions.json"
        asked.write_text(json.dumps([q.as_dict() for q in questions]), encoding="utf-8")
        command = [sys.executable, "-m", "hpdlf.exec.tuning", str(asked), "--seconds", str(seconds), "--cores"]
        command += map(str, cores)
        for said in json_lines(
            command,
            env=rank_environment() | {"JAX_PLATFORMS": "cpu"},
            timeout_s=2 * seconds + STARTING_S,
            what="timing lowerings",
        ):
            question = questions[said["number"]]
            yield Answer(question=question, ways=said["ways"], failed=said["failed"]) if "ways" in said else question


# --- in the measuring process -----------------------------------------------------------------------------------------


def call_of(question: Question, way: str) -> Callable[[], Any]:
    """A call of no arguments that computes the direction in `way`, compiled as in a network, and waits for the result."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from .compiling import options_for
    from .tuning_cases import case

    function, *dims = case(question.shape, question.direction, way)
    draw = np.random.default_rng(0)
    a, b = (jnp.asarray(draw.standard_normal(d, dtype=np.float32), question.dtype) for d in dims)
    options = options_for(isinstance(question.shape, Convolution))
    compiled = jax.jit(function, compiler_options=options).lower(a, b).compile()
    return lambda: jax.block_until_ready(compiled(a, b))


def answer(question: Question) -> Answer:
    """Time every way, the best ones at length."""
    able = ways(question.shape, question.direction)
    bursts: dict[str, list[list[float]]] = {}
    racing: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    best_s = float("inf")
    for way in sorted(able, key=lambda way: way != question.first):
        try:
            call = call_of(question, way)
            tried = _tried(call, best_s)
            bursts[way] = [tried]
            if min(tried) > SLOW * best_s:
                continue
            bursts[way] = [sample(call, seconds=BURST_S)]
        except Exception as error:  # too large for the memory, say; the others can still be compared
            failed[way] = f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
            bursts.pop(way, None)
            continue
        racing[way] = call
        best_s = min(best_s, median(bursts[way][0]))
    for _ in range(MOST_BURSTS - 1):
        close = [w for w in racing if min(map(median, bursts[w])) < CLOSE * best_s]
        if len(close) < 2 or all(_settled(bursts[w]) for w in close):
            break
        for way in close:
            bursts[way].append(sample(racing[way], seconds=BURST_S))
            best_s = min(best_s, median(bursts[way][-1]))
    return Answer(question=question, ways={w: summarise(*b) for w, b in bursts.items()}, failed=failed)


def _tried(call: Callable[[], Any], best_s: float) -> list[float]:
    """The times of a few calls after the first, two at least; of the first alone where that is long and hopeless."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    first = timed()
    if first > max(LONG_S, HOPELESS * best_s):
        return [first]
    times = [timed(), timed()]
    while len(times) < FEW and sum(times) < WARM_S:
        times.append(timed())
    return times


def _settled(bursts: list[list[float]]) -> bool:
    """Whether two bursts say the same."""
    medians = sorted(median(burst) for burst in bursts)
    return len(medians) > 1 and medians[1] < AGREE * medians[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the questions of a file, as long as there is time to begin with one."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description="time ways to compute what has several")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.cores)  # before XLA counts them for its threads
    questions = [Question.read(said) for said in json.loads(options.questions.read_text(encoding="utf-8"))]
    if any(q.dtype == "float64" for q in questions):
        import jax

        jax.config.update("jax_enable_x64", True)
    for number, question in enumerate(questions):
        if time.perf_counter() - start > options.seconds:
            break
        _say({"number": number})
        found = answer(question)
        _say({"number": number, "ways": found.ways, "failed": found.failed})


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
