"""`python leash.py PARENT LOCK COMMAND…`: becomes COMMAND, which dies with process PARENT and is alone on LOCK.

Run as a script, without site-packages, so that it costs milliseconds. Linux kills the command when its parent dies (prctl
PR_SET_PDEATHSIG, which survives exec). Elsewhere it lives on to its end; the lock, inherited by the command, makes the next
attempt wait for it. A `preexec_fn` would do the same but runs Python between fork and exec of a threaded process.
"""

import ctypes
import fcntl
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, lock, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above took hold
            sys.exit(1)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.set_inheritable(descriptor, True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
