"""What every tool calibrates on: one text per tokenizer whose tokenization *is* the windows, so that who reads text (llama.cpp,
hubquant) and who takes token ids (the others) see the same tokens in the same windows."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubquant.calibrate.source import read_text, text_name, text_sha256
from hubquant.calibrate.text import load_tokenizer

SPARE = 1.5  # more characters are taken than are likely to be needed: pieces differ in characters per token


@dataclass(frozen=True)
class Calibration:
    """`text` and `ids` are files: the text, and a JSON list of its windows × window token ids."""

    text: Path
    ids: Path
    windows: int
    window: int
    about: dict[str, Any]


def prepare(model: Path, source: str, windows: int, window: int, folder: Path) -> Calibration:
    """Write text and ids into `folder`, or find them there.

    Raises SystemExit if the text is too short, or a text of exactly that many tokens cannot be cut from it.
    """
    text, ids = folder / "calibration.txt", folder / "calibration.json"
    tokenizer = load_tokenizer(model)
    cut = excerpt(tokenizer, read_text(source), windows, window)
    found = tokenizer(cut)["input_ids"]
    folder.mkdir(parents=True, exist_ok=True)
    write(text, cut)
    write(ids, json.dumps([found[i * window : (i + 1) * window] for i in range(windows)]))
    about = {
        "text": text_name(source),
        "text_sha256": text_sha256(source),
        "excerpt_sha256": hashlib.sha256(cut.encode()).hexdigest(),
        "windows": windows,
        "window": window,
    }
    return Calibration(text, ids, windows, window, about)


def excerpt(tokenizer: Any, text: str, windows: int, window: int) -> str:
    """Pieces spread evenly over the text, cut at line ends, joined and cut to exactly windows × window tokens."""
    wanted = windows * window
    sample = text[: 64 * window]
    per_token = len(sample) / len(tokenizer(sample)["input_ids"])
    size = round(window * per_token * SPARE)
    if windows * size > len(text):
        raise SystemExit(f"the calibration text has {len(text)} characters, too few for {windows} windows of {window} tokens")
    starts = [text.rfind("\n", 0, i * (len(text) - size) // max(windows - 1, 1)) + 1 for i in range(windows)]
    lengths = _fitting(tokenizer, text, starts, size, window)
    joined = "".join(text[s : s + n] for s, n in zip(starts, lengths, strict=True))
    ends = [end for _, end in tokenizer(joined, return_offsets_mapping=True)["offset_mapping"]]
    for end in sorted({*ends[wanted - 8 : wanted + 8]}, key=lambda end: abs(end - ends[wanted - 1])):
        # llama.cpp drops a line end at the end of a file
        if not joined[:end].endswith("\n") and len(tokenizer(joined[:end])["input_ids"]) == wanted:
            return joined[:end]
    raise SystemExit(f"no excerpt of the calibration text has exactly {wanted} tokens; ask for other --windows")


def _fitting(tokenizer: Any, text: str, starts: list[int], size: int, window: int) -> list[int]:
    """How many characters of each piece are a little over one window of tokens, up to a line end where there is one."""
    lengths = []
    for start in starts:
        offsets = tokenizer(text[start : start + size], return_offsets_mapping=True)["offset_mapping"]
        reach = offsets[min(window, len(offsets) - 1)][1]
        line = text.find("\n", start + reach, start + size)
        lengths.append(line + 1 - start if line >= 0 else reach)
    return lengths


def write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
