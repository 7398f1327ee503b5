"""hubquant's command line, and how much its output folder held at most: `python watched.py FOLDER FILE ARGUMENTS…`, bytes in FILE.

A folder grows until something in it is removed or renamed, so it is looked at before each of these. Looking every now and then
would miss what is there for milliseconds.
"""

import os
import sys
from pathlib import Path


def folder_bytes(folder: Path) -> int:
    return sum((Path(path) / name).stat().st_size for path, _, names in os.walk(folder) for name in names)


def main() -> None:
    folder, told = map(Path, sys.argv[1:3])
    largest = 0

    def note(event: str, _arguments: object) -> None:
        nonlocal largest
        if event in ("os.remove", "os.rename"):
            largest = max(largest, folder_bytes(folder))

    sys.addaudithook(note)
    sys.argv[1:] = sys.argv[3:]
    from hubquant.cli import main as run

    try:
        run()
    finally:
        told.write_text(str(max(largest, folder_bytes(folder))))


if __name__ == "__main__":
    main()
