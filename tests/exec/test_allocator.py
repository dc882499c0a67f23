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


LEFT = """
import resource
from pathlib import Path
import jax, numpy as np
from hpdlf.exec.allocator import give_back, give_back_after_compiling, keep_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20

def leave():
    blocks = [np.ones(2**18) for _ in range(200)]  # 400 MB in pieces of 2
    kept = blocks[::2]
    del blocks
    return kept

keep_memory(), give_back_after_compiling(), give_back_after_compiling()
first = leave()
full = resident()
give_back()
given = resident()
second = leave()
again = resident()
def program(x):
    for i in range(60):
        x = jax.numpy.sin(x @ x) + i
    return x
jax.jit(program).lower(np.ones((32, 32))).compile()
print(full - given, again - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_a_compiler_leaves_is_given_back() -> None:
    """Every other block is in use, so that what is free lies between."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    at_once, after_compiling = map(int, done.stdout.split())
    assert at_once > 150
    assert after_compiling > 60  # the compiler has taken some


def test_small_programs_are_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(allocator, "give_back", lambda: given.append(True))
    for event, seconds in ((allocator.COMPILED, 0.01), ("/jax/core/compile/jaxpr_trace_duration", 9.0)):
        allocator._compiled(event, seconds, fun_name="f")
    assert not given
    allocator._compiled(allocator.COMPILED, 2.0, fun_name="f")
    assert given


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("nothing may be called"))
    assert not allocator.keep_memory()
    allocator.give_back(), allocator.give_back_after_compiling()
