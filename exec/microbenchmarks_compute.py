"""The part of the micro-benchmarks that computes: chains of operators on one core, in a process of its own.

Run as ``python -m hpdlf.exec.microbenchmarks_compute`` with the environment of
:func:`hpdlf.exec.microbenchmarks_processes.one_core_environment`. Prints one JSON object per line, of the kind
"progress", "case", "dispatch", "reference", "triad" or "skipped". Times include one dispatch, because that is how a call
is paid for; ``launch_overhead`` of the profile says how much that is.

A case is timed in bursts with the next case's compilation between them, until two agree: other work on the machine
seldom disturbs both alike. The quickest burst's median counts, the spread is that of all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

from .microbenchmarks_chains import UPSTREAM, Case, graph_of
from .microbenchmarks_design import PRODUCTS, cases

__all__ = ["call_of", "sample", "summarise", "times"]

BURST_S = 0.08
MOST_BURSTS, AGREE = 4, 1.04
MOST_CASES = 5000
REFERENCE_EVERY_S = 15.0


def sample(
    call: Callable[[], Any], *, seconds: float, least: int = 3, most: int = 200, group_s: float = 2e-4
) -> list[float]:
    """Times of `call` in seconds, for about `seconds`; calls shorter than `group_s` are timed in groups."""
    call()
    start = time.perf_counter()
    call()
    group = max(1, min(200, math.ceil(group_s / max(time.perf_counter() - start, 1e-7))))
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        start = time.perf_counter()
        for _ in range(group):
            call()
        times.append((time.perf_counter() - start) / group)
    return times


def summarise(*bursts: list[float]) -> dict[str, float]:
    """Median of the quickest burst; 10th and 90th percentile of all times, the fastest, and how many took over twice the
    median (other work on the machine).

    >>> summarise([1.0, 1.0, 1.0, 5.0])["outliers"]
    1
    >>> summarise([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])["seconds"]
    1.0
    """

    def at(ordered: list[float], share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    together = sorted(t for burst in bursts for t in burst)
    median = min(at(sorted(burst), 0.5) for burst in bursts)
    return {
        "seconds": median,
        "low_s": min(at(together, 0.1), median),
        "high_s": max(at(together, 0.9), median),
        "fastest_s": together[0],
        "repeats": len(together),
        "outliers": sum(t > 2 * median for t in together),
    }


class Timed(NamedTuple):
    """A case, ready to be called, and the times of its bursts."""

    case: Case
    call: Callable[[], Any]
    bursts: list[list[float]]

    @property
    def settled(self) -> bool:
        """Whether two bursts say the same, or enough were made."""
        medians = sorted(median(burst) for burst in self.bursts)
        return len(medians) >= MOST_BURSTS or (len(medians) > 1 and medians[1] < AGREE * medians[0])


def call_of(case: Case) -> Callable[[], Any]:
    """A call of no arguments that runs the case once, compiled, and waits for the result."""
    import jax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    if case.kind == "update":
        return _update_of(case)
    import jax.numpy as jnp
    import numpy as np

    from .operators import Context
    from .segments import build_segment

    bench = graph_of(case)
    graph, output = bench.graph, bench.graph.outputs[0]
    inputs = ["x", *bench.given]
    segment = build_segment(
        graph,
        bench.compiled,
        inputs,
        [output],
        bench.constants,
        case.dtype,
        wrt=("x",) if bench.differentiable else (),
    )
    draw = np.random.default_rng(0)

    def array(name: str) -> Any:
        dims = graph.tensors[name].dims(1)
        if name in graph.state:
            return jnp.ones(dims, case.dtype)
        scale = 0.05 if name in graph.parameters and len(dims) > 1 else 1.0
        return jnp.asarray(draw.standard_normal(dims, dtype=np.float32) * scale, case.dtype)

    parameters = {name: array(name) for name in segment.parameters}
    state = {name: array(name) for name in segment.state}
    given = {"x": array("x"), **{name: jnp.asarray(value) for name, value in bench.given.items()}}
    context = Context(key=None, samples=None, training=True)  # type: ignore[arg-type]
    if case.passes == "forward":
        return lambda: jax.block_until_ready(segment.forward(parameters, state, given, context))
    cotangents = {output: array(output)}
    if case.passes == "training":
        return lambda: jax.block_until_ready(segment.forward_backward(parameters, state, given, context, cotangents))
    return _step_of(case, segment, parameters, state, given, context, cotangents)


def _step_of(
    case: Case, segment: Any, parameters: Any, state: Any, given: Any, context: Any, cotangents: Any
) -> Callable[[], Any]:
    """Forward, backward and update as one function, the parameters renewed in place, as on a single rank."""
    import jax
    import optax

    optimizer = _optimizer(case.passes)

    def step(renewed: Any, rest: Any) -> Any:
        parameters, moments = renewed
        outputs, new_state, gradients, moving = segment.forward_backward(parameters, *rest, context, cotangents)
        delta, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, delta), moments), outputs, new_state, moving

    compiled = jax.jit(step, donate_argnums=0)
    held = [(parameters, optimizer.init(parameters))]

    def call() -> Any:
        held[0], *others = jax.block_until_ready(compiled(held[0], (state, given)))
        return others

    return call


def _update_of(case: Case) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    graph = graph_of(case).graph
    optimizer = _optimizer(case.passes)
    names = [name for name in graph.parameters if name != UPSTREAM]
    parameters = {name: jnp.ones(graph.tensors[name].dims(1), case.dtype) for name in names}
    gradients = {name: jnp.ones_like(value) for name, value in parameters.items()}

    def update(parameters: Any, moments: Any, gradients: Any) -> Any:
        delta, moments = optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, delta), moments

    compiled = jax.jit(update, donate_argnums=(0, 1))
    held = [(parameters, optimizer.init(parameters))]

    def call() -> None:
        held[0] = jax.block_until_ready(compiled(*held[0], gradients))

    return call


def _optimizer(name: str) -> Any:
    from ..models.plan import Recipe
    from .optimizers import make_optimizer

    recipe = Recipe.model_validate({"steps": 10, "optimizer": {"name": name, "learning_rate": 1e-6}})
    return make_optimizer(recipe, total_steps=10, steps_per_epoch=10)


def times(budget_s: float, part: int = 0, parts: int = 1) -> Iterator[dict[str, Any]]:
    """Time every `parts`-th case, from number `part` on, within `budget_s`, the most telling first."""
    start = referred = time.perf_counter()
    waiting: list[Timed] = []
    reference = call_of(PRODUCTS[0])
    yield {"kind": "reference", "at_s": time.time(), **summarise(sample(reference, seconds=BURST_S))}
    done = 0
    for case in cases(MOST_CASES)[part::parts]:
        now = time.perf_counter()
        # The first products are what a profile cannot do without.
        if now - start > budget_s and not (part == 0 and done < 1):
            break
        yield {"kind": "progress", "text": case.text, "share": min((now - start) / budget_s, 1.0)}
        try:
            timed = Timed(case, call_of(case), [])
            timed.bursts.append(sample(timed.call, seconds=BURST_S))
        except Exception as error:  # a lowering that fails here is no reason to measure nothing
            yield {"kind": "skipped", "what": case.text, "reason": str(error).split("\n", 1)[0]}
            continue
        for each in waiting:
            each.bursts.append(sample(each.call, seconds=BURST_S))
        yield from (_told(each) for each in waiting if each.settled)
        waiting = [each for each in waiting if not each.settled] + [timed]
        done += 1
        if now - referred > REFERENCE_EVERY_S:
            referred = now
            yield {"kind": "reference", "at_s": time.time(), **summarise(sample(reference, seconds=BURST_S))}
    for each in waiting:
        each.bursts.append(sample(each.call, seconds=BURST_S))
        yield _told(each)
    yield {"kind": "reference", "at_s": time.time(), **summarise(sample(reference, seconds=BURST_S))}


def _told(timed: Timed) -> dict[str, Any]:
    return {"kind": "case", "case": timed.case.as_dict(), **summarise(*timed.bursts)}


def dispatch(seconds: float) -> dict[str, Any]:
    """Time of a jitted call that computes next to nothing."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(lambda x: x + 1)
    one = jnp.zeros((1,))
    times = sample(lambda: compiled(one).block_until_ready(), seconds=seconds, most=2000, group_s=2e-4)
    return {"kind": "dispatch", **summarise(times)}


def triad(seconds: float, begin_at: float) -> dict[str, Any]:
    """Memory bandwidth in bytes per second: a = b + s c on arrays far larger than a core's share of the caches.

    `begin_at` (time.time()) lets several processes start together. NumPy does it in two passes: the multiplication
    reads c and writes a, the addition reads a and b and writes a, 40 bytes per element of float64; that a write first
    reads its line is not counted.
    """
    import numpy as np

    elements = 1 << 22
    a, b, c = np.zeros(elements), np.ones(elements), np.ones(elements)

    def call() -> None:
        np.multiply(c, 3.0, out=a)
        np.add(a, b, out=a)

    call()
    time.sleep(max(0.0, begin_at - time.time()))
    return {"kind": "triad", "bytes": 40.0 * elements, **summarise(sample(call, seconds=seconds, most=10_000))}


def main(arguments: list[str] | None = None) -> None:
    """Run one group of measurements on one core and print what was found, one JSON object a line."""
    parser = argparse.ArgumentParser(description="micro-benchmarks of one core")
    parser.add_argument("group", choices=("operators", "triad", "busy"))
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--budget-s", type=float, required=True)
    parser.add_argument("--begin-at", type=float, default=0.0)
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), help="this process's number, and how many there are"
    )
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    if options.group == "triad":
        _say(triad(options.budget_s, options.begin_at))
    elif options.group == "busy":
        end = time.perf_counter() + options.budget_s
        call = call_of(PRODUCTS[0])
        while time.perf_counter() < end:
            call()
    else:
        part, parts = options.part
        if part == 0:
            _say(dispatch(min(1.0, 0.1 * options.budget_s)))
        for message in times(options.budget_s, part, parts):
            _say(message)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
