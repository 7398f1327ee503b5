"""The kernels compiled ahead of time for real GPUs, on a machine that has none: pytest tests/kernels/compiled"""

import os
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError("with TRITON_INTERPRET=1 triton compiles nothing; run these tests without it")

sys.path.insert(0, str(Path(__file__).parents[3] / "kernels"))
