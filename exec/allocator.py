"""Memory that stays with the process: what the launcher says to ranks by environment variables, said to a running process.

glibc gives a freed block of more than 128 KiB to 32 MiB (the threshold moves) back to the kernel at once. Results of a training step
are larger, so every step would fault in fresh pages, zeroed by the kernel: of a ResNet-18 (64 x 64, batch 16) 24,500 a step
instead of 1,400. What that costs depends on the machine: in one process on two cores nothing beyond noise, more where several
ranks fault at once. The environment variables of :func:`hpdlf.exec.environment.rank_environment` are read when a process starts;
``mallopt(3)`` says the same later.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_memory"]

# <malloc.h>; values are a C int, hence below 2^31, which is more than any one block of a step that trains well.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
MOST = 2**31 - 1
PAD_BYTES = 64 * 2**20


def keep_memory() -> bool:
    """Tell glibc to keep freed memory from now on; whether it could be told (False: another C library, nothing changed).

    Blocks of up to 2 GiB come from the heap, which is not cut back, instead of fresh mappings. One arena, since others hold no
    large blocks. The process keeps its peak of memory until it ends; calling twice changes nothing.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    wanted = {M_MMAP_THRESHOLD: MOST, M_TRIM_THRESHOLD: MOST, M_TOP_PAD: PAD_BYTES, M_ARENA_MAX: 1}
    told = {option: bool(mallopt(option, value)) for option, value in wanted.items()}
    if not told[M_MMAP_THRESHOLD]:  # some releases refuse more than 32 MiB: no fresh mappings at all, then
        told[M_MMAP_THRESHOLD] = bool(mallopt(M_MMAP_MAX, 0))
    return all(told.values())
