"""Coverage-guided fuzzing of the GGUF reader (`make fuzz`): what it finds interesting goes into corpus.zip, which
test_fuzz.py reads in every test run. Needs the package atheris. Anything but BadModel, or more than 512 MB, is a crash.

    python tests/formats/gguf/fuzz.py SECONDS
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hubquant.formats.gguf"]):
    from test_fuzz import CORPUS, corpus, read_all, seeds

MEMORY_MB = 512  # on top of what torch takes when it is loaded


def fuzz(folder: Path, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    path = folder.with_suffix(".gguf")

    def one(data: bytes) -> None:
        path.write_bytes(data)
        read_all(path)

    limits = [f"-max_total_time={seconds}", "-max_len=6000", "-timeout=5", f"-rss_limit_mb={1500 + MEMORY_MB}"]
    atheris.Setup([sys.argv[0], str(folder), *limits, f"-artifact_prefix={Path.cwd()}/crash-"], one)
    atheris.Fuzz()


def keep(folder: Path) -> int:
    """corpus.zip from the folder's files, the same bytes for the same files."""
    found = sorted(p for p in folder.iterdir() if p.is_file())
    with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in found:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return len(found)


def main() -> None:
    if len(sys.argv) == 3:
        fuzz(Path(sys.argv[2]), int(sys.argv[1]))
    with tempfile.TemporaryDirectory() as root:
        grown, least = Path(root) / "grown", Path(root) / "least"
        grown.mkdir(), least.mkdir()
        for name, data in [*seeds().items(), *(corpus() if CORPUS.exists() else ())]:
            (grown / name).write_bytes(data)
        result = subprocess.run([sys.executable, __file__, sys.argv[1], str(grown)], check=False)
        if result.returncode:
            sys.exit(f"a crash was found: see {Path.cwd()}/crash-*")
        print(f"{keep(grown)} files kept in {CORPUS.name}")


main()
