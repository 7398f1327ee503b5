"""Memory of this process and this machine, in bytes."""

import ctypes
import os
import resource
import sys
from pathlib import Path

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE = 1 << 20


def resident() -> int:
    """Of this process, now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The largest resident set of this process so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        # Linux counts here what the process that started this one had taken, which may be more; macOS counts bytes, others kB
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def available() -> int | None:
    """What programs can still take, on this machine and in this container; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit, used, stat = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current", "stat"))
    except OSError:
        return free
    cached = sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith(("active_file ", "inactive_file ")))
    return free if limit == "max" else min(free, int(limit) - int(used) + cached)


def map_large() -> None:
    """From now on every large block is mapped on its own, and gone when it is freed, but for those that a hole of the heap can
    take: to be called when a process begins.

    By itself glibc goes over to its heap for blocks of up to 32 MB, into whose holes a solver's matrices of many sizes do not fit:
    a pass took 28 % more after 16 layers than after 4, and 9 % with blocks of 4 MB and more mapped. Of 128 kB and more, it took a
    third longer.
    """
    if sys.platform == "linux" and (found := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        found(M_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Give what was freed back to the system, where the C library can: glibc keeps it, in holes that the next layer's larger
    tensors do not fit into. Takes milliseconds."""
    if sys.platform == "linux" and (found := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        found(0)
