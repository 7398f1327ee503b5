"""The tree that a Hub kernel repository is loaded from: build/torch-{cuda,rocm,xpu,cpu}/, from build.toml and torch-ext/.

    python kernels/build_noarch.py [FOLDER]     # FOLDER/build/…, beside this file if not given

The package is source only, so all four are the same files. What differs is `_ops.py`: the operators of each build live in a
namespace of their own, since several builds can be loaded into one process. kernel-builder (flake.nix) writes the same tree.
"""

import base64
import hashlib
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GENERATED = ("_ops.py", "metadata.json")
OPS = '''"""Where this build's operators live in torch.ops."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(name: str) -> str:
    return f"{id}::{{name}}"
'''


def build(out: Path) -> list[Path]:
    """Write out/build/torch-*, in place of what was there; returns their folders."""
    project = tomllib.loads((HERE / "build.toml").read_text())
    package = HERE / "torch-ext" / project["general"]["name"].replace("-", "_")
    suffixes = {f".{suffix}" for suffix in project["torch-noarch"]["pyext"]}
    files = {p.relative_to(package): p.read_bytes() for p in sorted(package.rglob("*")) if p.suffix in suffixes and p.is_file()}
    return [
        _variant(out / "build" / f"torch-{backend}", backend, project["general"], files)
        for backend in project["general"]["backends"]
    ]


def _variant(folder: Path, backend: str, general: dict[str, Any], files: dict[Path, bytes]) -> Path:
    content = hashlib.sha256(b"".join(str(path).encode() + b"\0" + data for path, data in files.items())).hexdigest()
    identity = f"{general['name'].replace('-', '_')}_{backend}_{content[:8]}"
    files = {**files, Path("_ops.py"): OPS.format(id=identity).encode()}
    metadata = {
        "id": identity,
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {str(path): base64.b64encode(hashlib.sha256(data).digest()).decode() for path, data in files.items()},
        },
        "python-depends": [],
    }
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in {**files, Path("metadata.json"): json.dumps(metadata, indent=2).encode()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


if __name__ == "__main__":
    for built in build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE):
        print(built)
