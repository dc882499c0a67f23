"""Memory that was freed stays with the process, so that large results cost no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from hpdlf.exec import allocator

MEASURE = """
import resource
import numpy as np
from hpdlf.exec.allocator import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(25_000_000, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, told = faults(), keep_memory()
faults()
print(before, told, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_blocks_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    before, told, after = done.stdout.split()
    assert told == "True"
    assert int(before) > 4 * 40  # 100 MB each: 48 pages even where they are huge ones of 2 MiB
    assert int(after) < 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("nothing may be called"))
    assert not allocator.keep_memory()
