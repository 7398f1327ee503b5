"""Token windows from a text, fixed by source, hash and counts: the same call gives the same tokens on every machine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hubquant.errors import BadModel, UsageError


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
