"""Sums over ranks of one node through memory that they share: two copies and one addition, no message.

Every rank adds up an equal part of the elements and everybody copies the parts together, so all get the same bits: terms are
added in the order of ranks. Against MPI's own all-reduce, whose waiting ranks keep their cores busy, the cores stay free for
the stream that computes meanwhile. Elements travel in chunks of a bounded size through two buffers in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["CHUNK_BYTES", "NodeReduction", "parts_of"]

CHUNK_BYTES = 16 << 20
"""What each of a rank's two buffers holds: large enough that meeting costs little, small enough to stay in a cache."""

LINE_BYTES = 64
SHARED_MEMORY = "/dev/shm"


class NodeReduction:
    """Sums over the ranks of `comm`, all of which must call the same methods in the same order; see :meth:`open`."""

    def __init__(self, comm: MPI.Intracomm, wait: Callable[[MPI.Request], None]) -> None:
        self._comm, self._wait = comm, wait
        self._turn = 0
        self._window = MPI.Win.Allocate_shared(2 * CHUNK_BYTES + LINE_BYTES, 1, comm=comm)
        self._window.Lock_all()
        self._buffers = [_halves(self._window.Shared_query(rank)[0]) for rank in range(comm.size)]

    @classmethod
    def open(cls, comm: MPI.Intracomm, wait: Callable[[MPI.Request], None]) -> NodeReduction | None:
        """None where the ranks lie on several nodes, or a node has too little shared memory. Collective.

        wait   returns when a request is done, and meanwhile leaves the core to others
        """
        wait(comm.Ibarrier())  # what follows would keep a core busy until the last rank is here
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        fits = node.size == comm.size and _free_bytes() >= 2 * comm.size * (2 * CHUNK_BYTES + LINE_BYTES)
        node.Free()
        return cls(comm, wait) if comm.allreduce(fits, op=MPI.LAND) else None

    def close(self) -> None:
        """Give the memory back. Collective."""
        self._window.Unlock_all()
        self._window.Free()

    def sum(self, arrays: Sequence[np.ndarray], into: Sequence[np.ndarray]) -> None:
        """Write the element-wise sums of `arrays` to `into`: contiguous, of one dtype, of the same shapes on every rank."""
        given, sums = [a.reshape(-1) for a in arrays], [a.reshape(-1) for a in into]
        total = sum(a.size for a in given)
        most = CHUNK_BYTES // given[0].itemsize
        for start in range(0, total, most):
            self._sum_chunk(given, sums, start, min(start + most, total))

    def _sum_chunk(self, given: Sequence[np.ndarray], sums: Sequence[np.ndarray], start: int, stop: int) -> None:
        rank, dtype = self._comm.rank, given[0].dtype
        buffers = [halves[self._turn].view(dtype) for halves in self._buffers]
        parts = parts_of(start, stop, self._comm.size, LINE_BYTES // dtype.itemsize)
        for owner, part in enumerate(parts):
            if owner != rank:
                _copy_in(buffers[rank], given, part, start)
        self._meet()
        self._add(buffers, given, parts[rank], start)
        self._meet()
        for owner, part in enumerate(parts):
            for place, piece in pieces(sums, *part):
                np.copyto(piece, buffers[owner][part[0] - start + place :][: piece.size])
        # Others may still read this buffer: it is written again only after everybody has met in the next chunk.
        self._turn = 1 - self._turn

    def _add(self, buffers: Sequence[np.ndarray], given: Sequence[np.ndarray], part: tuple[int, int], start: int) -> None:
        """Add up one's own part, in one's own buffer."""
        rank = self._comm.rank
        for place, piece in pieces(given, *part):
            at = slice(part[0] - start + place, part[0] - start + place + piece.size)
            terms = [piece if r == rank else buffers[r][at] for r in range(len(buffers))]
            result = buffers[rank][at]
            np.add(terms[0], terms[1], out=result)
            for term in terms[2:]:
                np.add(result, term, out=result)

    def _meet(self) -> None:
        """Until everybody is here; what was written before is seen after."""
        self._window.Sync()
        self._wait(self._comm.Ibarrier())
        self._window.Sync()


def parts_of(start: int, stop: int, ranks: int, multiple: int) -> list[tuple[int, int]]:
    """start..stop as one run per rank, of equal lengths that are multiples of `multiple`, but for the last ones.

    >>> parts_of(100, 180, ranks=3, multiple=16)
    [(100, 132), (132, 164), (164, 180)]
    """
    each = -(-(stop - start) // (ranks * multiple)) * multiple
    return [(min(start + r * each, stop), min(start + (r + 1) * each, stop)) for r in range(ranks)]


def pieces(arrays: Sequence[np.ndarray], start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Elements start..stop of flat arrays laid end to end: (distance from start, a view of one array).

    >>> [(place, piece.tolist()) for place, piece in pieces([np.arange(3), np.arange(10, 14)], 2, 5)]
    [(0, [2]), (1, [10, 11])]
    """
    offset = 0
    for array in arrays:
        first, last = max(start - offset, 0), min(stop - offset, array.size)
        if first < last:
            yield offset + first - start, array[first:last]
        offset += array.size


def _copy_in(buffer: np.ndarray, given: Sequence[np.ndarray], part: tuple[int, int], start: int) -> None:
    for place, piece in pieces(given, *part):
        np.copyto(buffer[part[0] - start + place :][: piece.size], piece)


def _halves(memory: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two buffers that begin on a cache line."""
    raw = np.frombuffer(memory, dtype=np.uint8)
    skipped = -raw.ctypes.data % LINE_BYTES
    return raw[skipped:][:CHUNK_BYTES], raw[skipped + CHUNK_BYTES :][:CHUNK_BYTES]


def _free_bytes() -> int:
    """What is left of the host's shared memory: containers often have 64 MB, and writing beyond would kill the rank."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return 0
    return found.f_bavail * found.f_frsize
