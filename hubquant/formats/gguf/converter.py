"""llama.cpp's own converter, where the user has it: a model family that hubquant cannot write becomes a 16-bit GGUF file, whose
tensors hubquant then quantizes. HUBQUANT_LLAMA_CPP names the folder that convert_hf_to_gguf.py lies in."""

import os
import subprocess
import sys
from pathlib import Path

from hubquant.errors import BadModel

FOLDER = "HUBQUANT_LLAMA_CPP"
SCRIPT = "convert_hf_to_gguf.py"
SECONDS = 6 * 3600


def converter() -> Path | None:
    """The script, or None if the user names no folder. Raises BadModel if the folder does not hold it."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    script = Path(folder) / SCRIPT
    if not script.is_file():
        raise BadModel(f"{FOLDER} is {folder!r}, where there is no {SCRIPT}; name the folder of llama.cpp's source")
    return script


def convert(model: Path, file: Path, script: Path) -> Path:
    """`model` as a GGUF file in 16 bit. Raises BadModel with the converter's last words."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), str(model), "--outfile", str(file), "--outtype", "auto"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadModel(f"llama.cpp's converter could not be run: {error}") from None
    if done.returncode or not file.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
        file.unlink(missing_ok=True)
        raise BadModel(f"llama.cpp's converter declined it too: {said[-1].strip()}")
    return file
