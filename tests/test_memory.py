"""What a process is said to have taken is its own, also if a large one started it."""

import subprocess
import sys

from hubquant import memory

LARGE = 600_000_000


def test_peak_is_of_this_process_alone() -> None:
    held = bytearray(LARGE)
    held[::4096] = b"\1" * len(held[::4096])
    said = int(subprocess.check_output([sys.executable, "-c", "from hubquant import memory; print(memory.peak())"]))
    assert memory.resident() > LARGE > said > 10_000_000
    assert memory.peak() >= memory.resident()
