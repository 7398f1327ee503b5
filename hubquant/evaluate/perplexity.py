"""Perplexity protocols: how a text becomes windows and which predictions count. A number without its protocol is no number.

Windows hold N tokens, do not overlap, and the tail of the text is dropped.
gptq-N (GPTQ's and AWQ's own scripts): BOS as tokenized, once at the start of the text; all N − 1 predictions are scored.
llamacpp-N (llama-perplexity): BOS, if the tokenizer adds it, replaces every window's first token; the second half is scored.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hubquant.artifact import Protocol
from hubquant.calibrate.source import read_text, text_name, text_sha256
from hubquant.calibrate.text import tokenize
from hubquant.errors import UsageError

RULES = ("gptq", "llamacpp")


@dataclass(frozen=True)
class Windows:
    """Token ids [n_windows, window] and the first position whose prediction counts (predicting the token after it)."""

    tokens: Tensor
    first_scored: int
    protocol: Protocol


def windows(name: str, source: str, tokenizer: Any, max_tokens: int) -> Windows:
    """The windows of protocol `name` over the text `source`, at most `max_tokens` tokens of it.

    Raises UsageError for an unknown protocol or a text shorter than one window.
    """
    match = re.fullmatch(r"([a-z]+)-(\d+)", name)
    if match is None or match[1] not in RULES or int(match[2]) < 4:
        raise UsageError(f"unknown protocol {name!r}; known: {', '.join(f'{r}-N' for r in RULES)} with a window of N tokens")
    rule, window = match[1], int(match[2])
    tokens = tokenize(tokenizer, read_text(source))
    count = min(tokens.numel(), max_tokens) // window
    if count == 0:
        raise UsageError(
            f"text {source!r} has {tokens.numel()} tokens, of which at most {max_tokens} count: fewer than one window of {window}"
        )
    ids = tokens[: count * window].view(count, window).clone()
    first = 0
    replaces = rule == "llamacpp" and adds_bos(tokenizer)
    if replaces:
        ids[:, 0] = tokenizer.bos_token_id
    if rule == "llamacpp":
        first = window // 2
    protocol = Protocol(
        name=name,
        window=window,
        stride=window,
        bos="replaces first token of each window" if replaces else "as tokenized",
        scored="second half" if first else "all",
        text=text_name(source),
        text_sha256=text_sha256(source),
        n_tokens=count * (window - 1 - first),
    )
    return Windows(ids, first, protocol)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS in front of a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def perplexity(nll_sum: float, n_tokens: int) -> float:
    """exp of the mean negative log-likelihood in nats."""
    return float(torch.tensor(nll_sum / n_tokens, dtype=torch.float64).exp())
