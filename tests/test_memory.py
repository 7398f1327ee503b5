"""What a process is said to have taken is its own, also if a large one started it."""

import platform
import subprocess
import sys

import pytest

from hubquant import memory

LARGE = 600_000_000


def test_peak_is_of_this_process_alone() -> None:
    held = bytearray(LARGE)
    held[::4096] = b"\1" * len(held[::4096])
    said = int(subprocess.check_output([sys.executable, "-c", "from hubquant import memory; print(memory.peak())"]))
    assert memory.resident() > LARGE > said > 10_000_000
    now = memory.resident()  # first: reading takes memory too
    assert memory.peak() >= now


HOLES = """
import ctypes, sys
from hubquant import memory

malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def filled(size):
    block = malloc(size)
    ctypes.memset(block, 1, size)
    return block

if sys.argv[1] == "mapped":
    memory.map_large()
free(filled(31 << 20))  # after which glibc takes blocks of that size from its heap
before = memory.resident()
large = []
for _ in range(16):
    large.append(filled(8 << 20))
    filled(64 << 10)  # stays, so that the heap cannot shrink
for block in large:
    free(block)
print(memory.resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap, which other C libraries have not got")
def test_large_blocks_leave_no_holes() -> None:
    left = {way: int(subprocess.check_output([sys.executable, "-c", HOLES, way], text=True)) for way in ("mapped", "plain")}
    assert left["mapped"] < 8 << 20
    assert left["plain"] > 64 << 20  # or this test proves nothing
