"""The output folder: one process at a time is at work in it, and nobody else's files are touched."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubquant import bookmark, progress
from hubquant.artifact import Report
from hubquant.bookmark import Bookmark
from hubquant.errors import DiskFull, FolderBusy, UsageError

REPORT_FILE = "hubquant.json"
OURS = (REPORT_FILE, progress.FILE, bookmark.FOLDER)  # one of them is in every folder that hubquant has written to


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone. Raises FolderBusy if another one has it.

    The folder itself is locked, and the lock ends with the process, however that ends.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FolderBusy(f"another hubquant is at work in {out}; wait until it is done, or name another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)


def open_bookmark(out: Path, key: str) -> Bookmark:
    """Where a pass with this key stands in the folder. Raises UsageError for a folder of someone else's."""
    if any(out.iterdir()) and not any((out / name).exists() for name in OURS):
        raise UsageError(f"{out} is not empty and was not made by hubquant; name another folder with -o")
    return Bookmark(out / bookmark.FOLDER, key)


def check_folder(out: Path, replace: bool) -> None:
    """Raises UsageError where no folder can be and, unless `replace`, where a pass was finished: another begins by clearing it."""
    if any(path.is_file() for path in (out, *out.parents)):
        raise UsageError(f"{out} is, or lies in, a file; name a folder with -o")
    if not replace and (out / REPORT_FILE).exists() and not (out / bookmark.FOLDER).exists():
        raise UsageError(f"{out} holds what an earlier command made; name another folder with -o, or make it anew with --replace")


def clear(out: Path, kept: Bookmark) -> None:
    """Before a pass is begun: nothing is in the folder but its bookmark, by which it is known as ours at any moment."""
    for path in out.iterdir():
        if path == kept.folder:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_report(report: Report, out: Path) -> Report:
    partial = out / f"{REPORT_FILE}.part"
    partial.write_text(report.model_dump_json(indent=2) + "\n")
    partial.replace(out / REPORT_FILE)
    return report


def disk_error(error: OSError, out: Path) -> Exception:
    """A sentence for a full disk, and any other error as it is."""
    if error.errno == 28:  # ENOSPC
        free = shutil.disk_usage(out.parent).free
        return DiskFull(f"the disk of {out} is full ({free / 1e9:.1f} GB free); make room, and the same command goes on from here")
    return error
