"""Run one command and say what it took: `python measure.py COMMAND…`, JSON on the last line of stdout.

A process of its own and a small one, because Linux counts the memory of the process that starts a program into that program's peak.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Exit code, wall and CPU seconds (user + system, children included), peak resident bytes of its largest process."""
    with log.open("wb") as out:
        started = time.monotonic()
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": used.ru_maxrss * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[2:], Path(sys.argv[1]))))
