"""The part of the micro-benchmarks that communicates: two MPI ranks, one core each, started by ``mpiexec``.

Rank 0 prints one JSON object per line: ``{"kind": "message" | "allreduce" | "overlap", ...}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from typing import Any

from .microbenchmarks_compute import summarise

__all__ = ["MESSAGE_BYTES"]

MESSAGE_BYTES = (8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 25)
ALLREDUCE_BYTES = (8, 1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 25)


def main(arguments: list[str] | None = None) -> None:
    """Measure messages, all-reduces and their overlap with computation between ranks 0 and 1."""
    parser = argparse.ArgumentParser(description="micro-benchmarks of MPI between two cores")
    parser.add_argument("--cores", type=int, nargs=2, required=True)
    parser.add_argument("--budget-s", type=float, required=True)
    options = parser.parse_args(arguments)
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.cores[world.rank]})
    each_s = options.budget_s / (len(MESSAGE_BYTES) + len(ALLREDUCE_BYTES) + 3)
    for nbytes in MESSAGE_BYTES:
        _say(world, {"kind": "message", "bytes": nbytes, **summarise(_messages(MPI, world, nbytes, each_s))})
    for nbytes in ALLREDUCE_BYTES:
        _say(world, {"kind": "allreduce", "bytes": nbytes, **summarise(_allreduces(world, nbytes, each_s))})
    _say(world, {"kind": "overlap", **_overlap(MPI, world, 3 * each_s)})


def _repeats(world: Any, once_s: float, seconds: float, most: int) -> int:
    """How often something of `once_s` fits into `seconds`; rank 0 decides for both."""
    return int(world.bcast(max(5, min(most, int(seconds / max(once_s, 1e-7)))), root=0))


def _messages(MPI: Any, world: Any, nbytes: int, seconds: float) -> list[float]:
    """One-way times of a message: half of a round trip, short ones in groups."""
    import numpy as np

    buffer = np.zeros(nbytes, dtype=np.uint8)

    def round_trips(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            if world.rank == 0:
                world.Send([buffer, MPI.BYTE], dest=1)
                world.Recv([buffer, MPI.BYTE], source=1)
            else:
                world.Recv([buffer, MPI.BYTE], source=0)
                world.Send([buffer, MPI.BYTE], dest=0)
        return (time.perf_counter() - start) / count / 2

    round_trips(2)
    once_s = 2 * round_trips(2)
    group = int(world.bcast(max(1, min(100, int(2e-4 / max(once_s, 1e-7)))), root=0))
    return [round_trips(group) for _ in range(_repeats(world, once_s * group, seconds, 300))]


def _allreduces(world: Any, nbytes: int, seconds: float) -> list[float]:
    """Times of an all-reduce of float32, the slower rank's as it is synchronising anyway."""
    import numpy as np

    give, take = np.zeros(nbytes // 4, dtype=np.float32), np.zeros(nbytes // 4, dtype=np.float32)

    def once(count: int) -> float:
        world.Barrier()
        start = time.perf_counter()
        for _ in range(count):
            world.Allreduce(give, take)
        return (time.perf_counter() - start) / count

    once(2)
    once_s = once(2)
    group = int(world.bcast(max(1, min(100, int(2e-4 / max(once_s, 1e-7)))), root=0))
    return [once(group) for _ in range(_repeats(world, once_s * group, seconds, 300))]


def _overlap(MPI: Any, world: Any, seconds: float) -> dict[str, Any]:
    """How much of an all-reduce in a helper thread hides behind a matrix product: (computing + reducing - both) / the
    shorter.

    0 where the two only take turns on a core, 1 where the shorter costs nothing. Clipped to that range, since noise
    leaves it.
    """
    import numpy as np

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return {"share": None, "reason": "this MPI does not let several threads communicate (no MPI_THREAD_MULTIPLE)"}
    give, take = np.zeros(1 << 22, dtype=np.float32), np.zeros(1 << 22, dtype=np.float32)
    left = np.ones((512, 512), dtype=np.float32)
    helper = world.Dup()

    def reduce() -> None:
        helper.Allreduce(give, take)

    def timed(call: Any) -> float:
        world.Barrier()
        start = time.perf_counter()
        call()
        world.Barrier()
        return time.perf_counter() - start

    timed(reduce)
    reduce_s = timed(reduce)
    left @ left
    once_s = min(timed(lambda: left @ left) for _ in range(3))
    # Both parts should take about as long, or one has nothing to hide behind.
    products = int(world.bcast(max(1, round(reduce_s / once_s)), root=0))

    def compute() -> None:
        for _ in range(products):
            left @ left

    def both() -> None:
        thread = threading.Thread(target=reduce)
        thread.start()
        compute()
        thread.join()

    shares = []
    for _ in range(_repeats(world, 4 * reduce_s, seconds, 60)):
        compute_s, reduce_s, both_s = timed(compute), timed(reduce), timed(both)
        shares.append((compute_s + reduce_s - both_s) / min(compute_s, reduce_s))
    summary = summarise([min(1.0, max(0.0, share)) for share in shares])
    return {
        "share": summary["seconds"],
        "low": summary["low_s"],
        "high": summary["high_s"],
        "repeats": summary["repeats"],
    }


def _say(world: Any, message: dict[str, Any]) -> None:
    if world.rank == 0:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
