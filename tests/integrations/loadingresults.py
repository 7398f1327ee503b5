"""What the tests of loading find out, kept for the README's table if HUBQUANT_KEEP_LOADING is set."""

import json
import os
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "loading" / "cpu.json"
PACKAGES = ("torch", "transformers", "peft")


def record(name: str, check: str, value: float | str | bool) -> None:
    """`check` of the checkpoint `name` gave `value`: logits' largest difference by their standard deviation, or what was done."""
    if not os.environ.get("HUBQUANT_KEEP_LOADING"):
        return
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"checkpoints": {}}
    kept["versions"] = {package: version(package) for package in PACKAGES}
    kept["checkpoints"].setdefault(name, {})[check] = value
    kept["checkpoints"] = {n: dict(sorted(kept["checkpoints"][n].items())) for n in sorted(kept["checkpoints"])}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(kept, indent=1) + "\n")
