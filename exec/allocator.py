"""Memory that stays with the process, and what the compiler leaves of it, which does not.

*Kept* is what steps use. The launcher says so to ranks by environment variables, :func:`keep_memory` to a running process.

glibc gives a freed block of more than 128 KiB to 32 MiB (the threshold moves) back to the kernel at once. Results and workspaces
of a training step are larger, so every step would fault in fresh pages, zeroed by the kernel: of a ResNet-50 (224 x 224, batch 8)
229,000 a step, a fifth of its time. So freed memory is kept, and the heap is grown once, of huge pages where the kernel has them
(512 times fewer faults, and far fewer misses when addresses are looked up). The environment variables of
:func:`hpdlf.exec.environment.rank_environment` are read when a process starts; this says the same later.

*Given back* is what lies free after a program was compiled (:func:`give_back_after_compiling`). XLA and LLVM take some hundred MB
and free them in pieces, between which what is still used lies: the workspace of a step finds no room there, so both would be
resident together. That is for predicting alone: what comes back later comes in small pages, and a training step on them takes an
eighth longer (ResNet-18 at 64 x 64, batch 16, two cores: 144 samples/s in place of 162).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["give_back", "give_back_after_compiling", "keep_memory"]

# <malloc.h>; -1 becomes the largest size there is.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
MOST = -1
PAD_BYTES = 64 * 2**20

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's own name for the event that a program has been compiled, or was found in the cache of compiled ones."""
LONG_S = 0.02


def keep_memory() -> bool:
    """Tell glibc to keep freed memory from now on; whether it could be told (False: another C library, nothing changed).

    Blocks come from the heap, which is not cut back, instead of fresh mappings, and the heap may use huge pages. One arena, since
    others hold no large blocks. What is freed stays until :func:`give_back`; calling twice changes nothing.
    """
    return _is_glibc() and _told()


def give_back_after_compiling() -> None:
    """From now on give memory that lies free back to the kernel whenever JAX has compiled a program of some size."""
    if _is_glibc():
        _listen()


def give_back() -> None:
    """Give what lies free back to the kernel, wherever it lies; nothing with another C library."""
    if _is_glibc():
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        trim(0)


@cache
def _listen() -> None:
    import jax

    jax.monitoring.register_event_duration_secs_listener(_compiled)


def _compiled(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED and duration_secs >= LONG_S:
        give_back()


def _is_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


@cache
def _told() -> bool:
    libc = ctypes.CDLL(None)
    try:
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except AttributeError:
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    wanted = {M_MMAP_THRESHOLD: MOST, M_TRIM_THRESHOLD: MOST, M_TOP_PAD: PAD_BYTES, M_ARENA_MAX: 1}
    told = {option: bool(mallopt(option, value)) for option, value in wanted.items()}
    if not told[M_MMAP_THRESHOLD]:  # some releases refuse more than 32 MiB: no fresh mappings at all, then
        told[M_MMAP_THRESHOLD] = bool(mallopt(M_MMAP_MAX, 0))
    if all(told.values()):
        malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        free.argtypes, free.restype = [ctypes.c_void_p], None
        madvise.argtypes, madvise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
        _grow(malloc, free, madvise)
    return all(told.values())


def _grow(malloc: ctypes._NamedFuncPointer, free: ctypes._NamedFuncPointer, madvise: ctypes._NamedFuncPointer) -> None:
    """Half of the machine's memory for the heap. It is a range of addresses, pages come when they are written; not where the
    administrator has the kernel count addresses as memory."""
    with suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    while size >= PAD_BYTES and not (start := malloc(size)):
        size //= 2  # under a limit of the address space
    if size >= PAD_BYTES:
        first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
        # Advice, which a kernel may refuse.
        madvise(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        free(start)
