"""Messages between ranks over MPI: NumPy views of JAX arrays, without copies where the library allows.

What arrives stays a NumPy array: a compiled function takes it as it is, without a copy if it is aligned, and thirty times quicker than
`jax.device_put` or DLPack would wrap it first (which also commits it to a device, and so compiles every function a second time).
Nobody may write to it afterwards.

Every stream has a communicator of its own, so that its order is its own. Waiting must not burn the core that computes: small and
one-to-one messages are polled with short sleeps. A large all-reduce goes through shared memory where all its ranks are on one
node (:mod:`.node_reduction`); elsewhere it first gathers everybody by polling and then runs MPI's blocking call, which makes
progress without Python.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from ..errors import RunError
from ..models.program import Group, Mesh
from .node_reduction import NodeReduction

__all__ = ["SharedVector", "Transport", "aligned_empty"]

Arrays = Mapping[str, Any]

POLL_S = 30e-6
AWAKE_S = 150e-6
LARGE_BYTES = 64 * 1024
ALIGNMENT_BYTES = 64


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array whose memory JAX can take over without a copy (aligned to 64 bytes)."""
    dtype = np.dtype(dtype)
    nbytes = prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def to_host(array: Any) -> np.ndarray:
    """A read-only view of a JAX array (a copy only where it lies on another device)."""
    return np.ascontiguousarray(np.asarray(array))


class Transport:
    """One rank's messages within a mesh.

    streams    names of the streams that will communicate, the same on every rank
    stopping   asked while waiting; true: give up
    """

    def __init__(self, mesh: Mesh, streams: Sequence[str], stopping: Callable[[], bool] = lambda: False) -> None:
        world = MPI.COMM_WORLD
        if mesh.size != world.size:
            raise RunError(f"The program has {mesh.size} ranks, MPI started {world.size}.")
        self.mesh, self.rank, self.stopping = mesh, world.rank, stopping
        self._world = world.Dup()
        self._comms = {stream: world.Dup() for stream in streams}
        self._groups: dict[tuple[str, Group], MPI.Intracomm] = {}
        self._on_node: dict[tuple[str, Group], NodeReduction | None] = {}
        for stream in streams:
            for group in (Group(("data",)), Group(("pipeline", "data"))):
                members = mesh.group(self.rank, group)
                split = self._comms[stream].Split(color=members[0], key=self.rank)
                self._groups[stream, group] = cast(MPI.Intracomm, split)

    def wait(self, request: MPI.Request) -> None:
        """Until a non-blocking operation is done: looking without pause for a moment, then asleep between looks.

        What is about to arrive is not slept through (a sleep costs ten times a small message); what takes longer leaves the core
        to the stream that computes.
        """
        awake_until_s = time.perf_counter() + AWAKE_S
        while not request.Test():
            if time.perf_counter() < awake_until_s:
                time.sleep(0)  # gives way to other streams of this rank, which os.sched_yield would keep from the interpreter
                continue
            if self.stopping():
                raise RunError("gave up waiting for a message: another stream of this rank failed")
            time.sleep(POLL_S)

    def barrier(self) -> None:
        """Until every rank is here."""
        self.wait(self._world.Ibarrier())

    def send(self, stream: str, receiver: int, tag: int, arrays: Sequence[Any]) -> int:
        """Send arrays, one message each; returns their bytes."""
        views = [to_host(a) for a in arrays]
        requests = [self._comms[stream].Isend(_raw(v), dest=receiver, tag=tag) for v in views]
        for request in requests:
            self.wait(request)
        return sum(v.nbytes for v in views)

    def receive(self, stream: str, sender: int, tag: int, shapes: Sequence[tuple[tuple[int, ...], Any]]) -> list[np.ndarray]:
        """Receive arrays of the given (shape, dtype)."""
        arrays = [aligned_empty(shape, dtype) for shape, dtype in shapes]
        for request in [self._comms[stream].Irecv(_raw(a), source=sender, tag=tag) for a in arrays]:
            self.wait(request)
        return arrays

    def all_reduce(self, stream: str, group: Group, arrays: Sequence[Any]) -> list[np.ndarray]:
        """The element-wise sums over the group; the same bits on every member."""
        views = [to_host(a) for a in arrays]
        results = [aligned_empty(v.shape, v.dtype) for v in views]
        for dtype in dict.fromkeys(v.dtype for v in views):
            of_type = [i for i, v in enumerate(views) if v.dtype == dtype]
            self._reduce(stream, group, [views[i] for i in of_type], [results[i] for i in of_type])
        return results

    def _reduce(self, stream: str, group: Group, views: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        """Sum arrays of one dtype. What is large in all takes the way for large ones; small arrays travel together."""
        comm = self._groups[stream, group]
        if sum(v.nbytes for v in views) < LARGE_BYTES:
            self._reduce_packed(comm, views, results)
            return
        if (on_node := self._node_reduction(stream, group)) is not None:
            on_node.sum(views, results)
            return
        self.wait(comm.Ibarrier())
        small = [i for i, v in enumerate(views) if v.nbytes < LARGE_BYTES]
        for i, view in enumerate(views):
            if i not in small:
                comm.Allreduce(view, results[i], op=MPI.SUM)
        if small:
            self._reduce_packed(comm, [views[i] for i in small], [results[i] for i in small])

    def _node_reduction(self, stream: str, group: Group) -> NodeReduction | None:
        """Opened when first wanted, which is in the same place of the program on every member."""
        if (stream, group) not in self._on_node:
            self._on_node[stream, group] = NodeReduction.open(self._groups[stream, group], self.wait)
        return self._on_node[stream, group]

    def _reduce_packed(self, comm: MPI.Comm, views: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        packed = np.concatenate([v.ravel() for v in views])
        summed = np.empty_like(packed)
        self.wait(comm.Iallreduce(packed, summed, op=MPI.SUM))
        offset = 0
        for result in results:
            result[...] = summed[offset : offset + result.size].reshape(result.shape)
            offset += result.size

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums over all ranks of a few numbers. For between runs of a program."""
        summed = np.empty_like(values)
        self.wait(self._world.Iallreduce(np.ascontiguousarray(values), summed, op=MPI.SUM))
        return summed

    def gather(self, value: Any) -> list[Any] | None:
        """A small picklable value of every rank, on rank 0. For start and end of a run."""
        return self._world.gather(value, root=0)

    def share(self, value: Any) -> Any:
        """Rank 0's small value, on every rank. For start and end of a run."""
        return self._world.bcast(value, root=0)

    def clock(self) -> Callable[[], float]:
        """Seconds since a zero that all ranks share.

        On one host the monotonic clock is everybody's; between hosts the offset to rank 0 is the one of the quickest of 20 round
        trips (Cristian 1989), good to half of that trip.
        """
        hosts = self._world.allgather(socket.gethostname())
        offset_s = 0.0 if len(set(hosts)) == 1 else self._offset_to_first()
        zero_s = self._world.bcast(time.perf_counter(), root=0)
        return lambda: time.perf_counter() - offset_s - zero_s

    def _offset_to_first(self) -> float:
        offset_s = 0.0
        for other in range(1, self._world.size):
            best_s = float("inf")
            for _ in range(20):
                if self.rank == 0:
                    self._world.recv(source=other)
                    self._world.send(time.perf_counter(), dest=other)
                elif self.rank == other:
                    asked_s = time.perf_counter()
                    self._world.send(None, dest=0)
                    theirs_s = self._world.recv(source=0)
                    now_s = time.perf_counter()
                    if now_s - asked_s < best_s:
                        best_s, offset_s = now_s - asked_s, (asked_s + now_s) / 2 - theirs_s
        return offset_s

    def abort(self) -> None:
        """End every rank at once; for a failure that the others cannot know of."""
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)


def _raw(array: np.ndarray) -> list[Any]:
    """An array as bytes: MPI has no name for bfloat16."""
    return [array.view(np.uint8) if array.ndim else array.reshape(1).view(np.uint8), MPI.BYTE]


class SharedVector:
    """Named arrays in memory that all ranks of the data axis expose, each an equal part; read and added to one-sidedly.

    Adding is atomic per element, reading is not atomic as a whole: what asynchronous SGD needs and no more. A counter says how
    often the vector was added to.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> None:
        self._comm = MPI.COMM_WORLD.Dup()
        self.shapes, self.dtype = dict(shapes), np.dtype(dtype)
        self.size = sum(int(np.prod(s, dtype=np.int64)) for s in self.shapes.values())
        self.part = -(-self.size // self._comm.size)
        self._window = MPI.Win.Allocate(self.part * self.dtype.itemsize, self.dtype.itemsize, comm=self._comm)
        self._mine = np.asarray(self._window.tomemory()).view(self.dtype)
        counted = 8 if self._comm.rank == 0 else 0
        self._counter = MPI.Win.Allocate(counted, 8, comm=self._comm)
        if counted:
            np.asarray(self._counter.tomemory()).view(np.int64)[:] = 0

    def open(self, initial: Mapping[str, np.ndarray]) -> None:
        """Every rank fills its own part from the same `initial` values; then access may begin."""
        flat = self._flat(initial)
        self._mine[: len(flat[self._slice(self._comm.rank)])] = flat[self._slice(self._comm.rank)]
        self._comm.Barrier()
        self._window.Lock_all()
        self._counter.Lock_all()

    def close(self) -> None:
        """Wait for everybody and end access."""
        self._comm.Barrier()
        self._window.Unlock_all()
        self._counter.Unlock_all()
        self._comm.Barrier()

    def read(self) -> tuple[dict[str, np.ndarray], int]:
        """(the arrays as they are now, the number of additions so far)."""
        version = self._count(0)
        flat = aligned_empty((self.size,), self.dtype)
        for owner in range(self._comm.size):
            self._window.Get(flat[self._slice(owner)], owner)
        self._window.Flush_all()
        arrays, offset = {}, 0
        for name, shape in self.shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = flat[offset : offset + count].reshape(shape)
            offset += count
        return arrays, version

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add to the vector."""
        flat = self._flat(arrays)
        for owner in range(self._comm.size):
            self._window.Accumulate(flat[self._slice(owner)], owner, op=MPI.SUM)
        self._window.Flush_all()

    def count(self) -> int:
        """Count one addition; returns how many there were before it."""
        return self._count(1)

    def _count(self, step: int) -> int:
        one, before = np.array([step], dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._counter.Fetch_and_op(one, before, 0, op=MPI.SUM)
        self._counter.Flush(0)
        return int(before[0])

    def _slice(self, owner: int) -> slice:
        return slice(owner * self.part, min((owner + 1) * self.part, self.size))

    def _flat(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.asarray(arrays[n], dtype=self.dtype).ravel() for n in self.shapes])
