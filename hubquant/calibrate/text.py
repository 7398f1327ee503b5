"""Token windows from a text, fixed by source, hash and counts: the same call gives the same tokens on every machine."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hubquant.errors import BadModel, UsageError

BUNDLED = ("prose-calib", "prose-eval")


def read_text(source: str) -> str:
    """The text of that name (see BUNDLED), or of that UTF-8 file. Raises UsageError if there is none or it is empty."""
    try:
        if source in BUNDLED:
            text = (files("hubquant") / "texts" / f"{source}.txt").read_text(encoding="utf-8")
        else:
            text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read text {source!r}: {error.strerror}; give a file or one of {', '.join(BUNDLED)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"text {source!r} is not UTF-8 (byte {error.start}); convert it") from None
    if not text.strip():
        raise UsageError(f"text {source!r} is empty")
    return text


def text_sha256(source: str) -> str:
    return hashlib.sha256(read_text(source).encode()).hexdigest()


def text_name(source: str) -> str:
    """The name a card shows: a bundled name, or the file's name without its folder."""
    return source if source in BUNDLED else Path(source).name


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises BadModel if there is none or it cannot be read."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise BadModel(f"{folder.name} has no tokenizer; without one nothing can be calibrated or measured")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise BadModel(f"{folder.name}: the tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """Token ids [n] of the whole text, special tokens as the tokenizer adds them (BOS once, at the start)."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def calibration_windows(tokens: Tensor, windows: int, window: int) -> Tensor:
    """`windows` windows [windows, window] spread evenly over the tokens, without overlap where the text is long enough.

    Raises UsageError if the text is shorter than one window.
    """
    if tokens.numel() < window:
        raise UsageError(f"the calibration text has {tokens.numel()} tokens, fewer than one window of {window}")
    last = tokens.numel() - window
    starts = [round(i * last / max(windows - 1, 1)) for i in range(windows)]
    return torch.stack([tokens[s : s + window] for s in starts])
