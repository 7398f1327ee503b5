"""`hf quant …`: the Hub's own command line finds extensions as folders with a manifest under the user's data folder."""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from hubquant.errors import HubquantError

ROOT = Path("~/.local/share/hf/extensions")
SCRIPT = "hf-quant"


def install() -> Path:
    """Write the extension's manifest for this installation; returns its folder.

    Raises HubquantError if the console script hf-quant is not beside the running Python.
    """
    script = shutil.which(SCRIPT, path=str(Path(sys.executable).parent)) or shutil.which(SCRIPT)
    if script is None:
        raise HubquantError(f"the script {SCRIPT} is not installed beside {sys.executable}; install hubquant with pip first")
    folder = ROOT.expanduser() / SCRIPT
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "owner": "hubquant",
        "repo": SCRIPT,
        "repo_id": f"hubquant/{SCRIPT}",
        "short_name": "quant",
        "executable_path": script,
        "type": "python",
        "installed_at": datetime.now(UTC).isoformat(),
        "description": "Quantized models: made in one pass, measured, published",
        "commit_sha": "",
    }
    partial = folder / "manifest.json.part"
    partial.write_text(json.dumps(manifest, indent=2))
    partial.replace(folder / "manifest.json")
    return folder
