"""Apply the seeded bugs of mutations.py, each to a copy of the package of its own, and see that its test fails.

A process that has imported torch, triton and pytest forks for every bug: importing them takes longer than most tests.
Exit status 1 if a bug was not caught, or if its line or its test is not there.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when triton defines a kernel

import numpy  # noqa: F401 imported once here, for all the forks
import pytest
import torch
import triton.runtime.interpreter  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernels" / "torch-ext" / "hubquant_kernels"
TESTS = ROOT / "tests" / "kernels" / "interpreted"
AT_ONCE = 2
CAUGHT = "caught"
OUTCOMES = {0: "NOT CAUGHT: the test passes", 1: CAUGHT}


def outcomes(mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, str]]:
    """Each with "caught", or with what is wrong with the bug, its line or its test. At most AT_ONCE run at a time."""
    waiting, running = list(reversed(mutations)), {}
    while waiting or running:
        if waiting and len(running) < AT_ONCE:
            mutation = waiting.pop()
            found = (PACKAGE / mutation.file).read_text().count(mutation.old)
            if found == 1:
                folder = Path(tempfile.mkdtemp(prefix="hubquant-mutant-"))
                running[start(mutation, folder)] = mutation, folder
            else:
                yield mutation, f"the text to change stands {found} times in the file"
            continue
        child, status = os.wait()
        mutation, folder = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        yield mutation, OUTCOMES.get(code, f"no verdict: pytest ended with {code}\n{(folder / 'log').read_text()[-2000:]}")
        shutil.rmtree(folder)


def start(mutation: Mutation, folder: Path) -> int:
    """Fork a process that runs the test against a mutated copy of the package in `folder`; it ends with pytest's exit code."""
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / mutation.file
    changed.write_text(changed.read_text().replace(mutation.old, mutation.new))
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.path.insert(0, str(folder))
        options = ["-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), f"--confcutdir={TESTS}"]
        os._exit(int(pytest.main([*options, str(TESTS / mutation.test)])))
    return child


def main() -> int:
    torch.set_num_threads(1)
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [m for m in MUTATIONS if word in m.file or word in m.test]
    missed = 0
    for mutation, result in outcomes(chosen):
        if result != CAUGHT:
            missed += 1
            print(f"{mutation.file}: {mutation.old!r} → {mutation.new!r}\n  {mutation.test}: {result}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} seeded bugs caught")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
