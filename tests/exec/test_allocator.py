"""Memory that was freed stays with the process, so that large results cost no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

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


HUGE = """
import re
from pathlib import Path
from hpdlf.exec.allocator import keep_memory

keep_memory(), keep_memory()
areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
print(sum(int(re.search(r"Size: +(\\d+)", a)[1]) for a in areas if "[heap]" in a and re.search(r"VmFlags:.* hg", a)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no huge pages")
def test_the_heap_may_use_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    memory_kib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024
    assert 0.45 * memory_kib < int(done.stdout) < 0.55 * memory_kib


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("nothing may be called"))
    assert not allocator.keep_memory()
