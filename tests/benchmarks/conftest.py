"""The benchmarks are scripts, not a package: what their tests import lies beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
