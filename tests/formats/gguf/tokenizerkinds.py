"""Small tokenizers built as the families' own are: their normalizers, pre-tokenizers, decoders, post-processors and special
tokens, over 2048 tokens learned from the bundled prose and the test strings."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hubquant.formats.gguf.pretokenizer import PRE_TOKENIZERS
from tests.formats.gguf.strings import STRINGS_BY_KIND

N_VOCAB = 2048
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = {**BYTE_LEVEL, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BLOCK_IN_FRONT = {"type": "Prepend", "prepend": "▁"}
# What llama.cpp's names stand for, as tokenizer.json writes it
PATTERNS = {name: patterns for patterns, names in PRE_TOKENIZERS.items() for name in names if name}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def splits(name: str) -> dict[str, Any]:
    return sequence(*map(split, PATTERNS[name]), BYTES_ONLY)


@dataclass(frozen=True)
class ByteLevelKind:
    """`pre`: the name that llama.cpp must be given. `unbuilt`: tokens of the vocabulary that no merge builds. `bos`: the token
    that the post-processor puts in front, "" for none."""

    pre: str
    pre_tokenizer: Mapping[str, Any]
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()  # added tokens that are not special
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    unbuilt: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""


@dataclass(frozen=True)
class SentencePieceKind:
    """`first`: the tokens before the bytes. `strips`: added tokens after the pieces that swallow the spaces behind them."""

    first: tuple[str, ...]
    normalizer: Mapping[str, Any] | None
    pre_tokenizer: Mapping[str, Any] | None
    adds_space: bool
    plain: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


BYTE_LEVEL_KINDS: dict[str, ByteLevelKind] = {
    "gpt2": ByteLevelKind("gpt-2", BYTE_LEVEL, ("<|endoftext|>",), eos="<|endoftext|>"),
    "gptneox": ByteLevelKind(
        "gpt-2",
        BYTE_LEVEL,
        ("<|endoftext|>", "<|padding|>"),
        plain=tuple(" " * n for n in range(24, 1, -1)),
        normalizer=NFC,
        eos="<|endoftext|>",
    ),
    "falcon": ByteLevelKind(
        "falcon",
        sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            BYTE_LEVEL,
            {**DIGITS, "individual_digits": False},
            split("[0-9][0-9][0-9]"),
        ),
        (">>TITLE<<", ">>QUESTION<<", "<|endoftext|>"),
        eos="<|endoftext|>",
    ),
    "starcoder2": ByteLevelKind(
        "smollm",
        sequence(DIGITS, BYTE_LEVEL),
        ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
        eos="<|endoftext|>",
    ),
    "cohere2": ByteLevelKind(
        "smollm",
        sequence(DIGITS, BYTE_LEVEL),
        ("<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"),
        normalizer=NFC,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "olmo2": ByteLevelKind("smaug-bpe", splits("smaug-bpe"), ("<|endoftext|>", "<|pad|>"), eos="<|endoftext|>"),
    "llama3": ByteLevelKind(
        "llama-bpe",
        splits("llama-bpe"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        ignore_merges=True,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "smollm3": ByteLevelKind(
        "llama-bpe",
        splits("llama-bpe"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>"),
        ignore_merges=True,
        eos="<|im_end|>",
    ),
    "mistral-tekken": ByteLevelKind(
        "tekken", splits("tekken"), ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), ignore_merges=True, bos="<s>", eos="</s>"
    ),
    "qwen3": ByteLevelKind(
        "qwen2",
        splits("qwen2"),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>", "<|fim_prefix|>"),
        normalizer=NFC,
        unbuilt=("</s>",),
        eos="<|im_end|>",
    ),
    "qwen3.5": ByteLevelKind(
        "qwen35", splits("qwen35"), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), normalizer=NFC, eos="<|im_end|>"
    ),
    "seed-coder": ByteLevelKind("seed-coder", splits("seed-coder"), ("<|endoftext|>",), eos="<|endoftext|>"),
    "gpt-oss": ByteLevelKind(
        "gpt-4o",
        splits("gpt-4o"),
        ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"),
        eos="<|return|>",
    ),
    "granite-embedding": ByteLevelKind(
        "granite-embed-multi-97m",
        splits("gpt-4o"),
        ("<|endoftext|>",),
        ignore_merges=True,
        unbuilt=("ĠGranite",),
        eos="<|endoftext|>",
    ),
    "deepseek-llm": ByteLevelKind(
        "deepseek-llm",
        splits("deepseek-llm"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        plain=("<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek-coder": ByteLevelKind(
        "deepseek-coder",
        splits("deepseek-coder"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        plain=("<pad>",),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek-v3": ByteLevelKind(
        "deepseek-v3",
        splits("deepseek-v3"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
}

SENTENCEPIECE_KINDS: dict[str, SentencePieceKind] = {
    "llama2": SentencePieceKind(
        ("<unk>", "<s>", "</s>"), {"type": "Sequence", "normalizers": [BLOCK_IN_FRONT, TO_BLOCKS]}, None, adds_space=True
    ),
    "mistral": SentencePieceKind(
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        None,
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        adds_space=True,
    ),
    "phi3": SentencePieceKind(
        ("<unk>", "<s>", "</s>"),
        {"type": "Sequence", "normalizers": [BLOCK_IN_FRONT, TO_BLOCKS]},
        None,
        adds_space=True,
        plain=("<|endoftext|>",),
        strips=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "gemma": SentencePieceKind(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"),
        TO_BLOCKS,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        adds_space=False,
        plain=("<table>", "</table>", "<tr>", *("\n" * n for n in range(2, 31)), *("▁" * n for n in range(2, 31))),
        options={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
}


def _added(token_id: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    defaults = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **defaults, **flags}


def _begins_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts this token in front."""
    parts = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": parts, "pair": [*parts, *parts], "special_tokens": special}


def _texts() -> Iterable[str]:
    """What merges are learned from. The strings count for much, so that every script of theirs has merges."""
    yield (files("hubquant") / "texts" / "prose-calib.txt").read_text()[:100_000]
    for kind, strings in STRINGS_BY_KIND.items():
        if kind != "special tokens inside text":
            yield from strings * 20


def _byte_level(kind: ByteLevelKind) -> dict[str, Any]:
    added = [*kind.unbuilt, *kind.special, *kind.plain]
    trained = Tokenizer.from_str(json.dumps(_file({"type": "BPE", "vocab": {}, "merges": []}, kind.normalizer, kind.pre_tokenizer)))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = N_VOCAB - len(added)
    trained.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    model = {**json.loads(trained.to_str())["model"], "ignore_merges": kind.ignore_merges}
    ids = {token: size + i for i, token in enumerate(added)}
    model["vocab"] |= {token: ids[token] for token in kind.unbuilt}
    tokens = [_added(ids[token], token, special=True) for token in kind.special]
    tokens += [_added(ids[token], token, special=False, normalized=True) for token in kind.plain]
    after = _begins_with(kind.bos, ids[kind.bos]) if kind.bos else BYTE_LEVEL
    return _file(model, kind.normalizer, kind.pre_tokenizer, tokens, after, BYTE_LEVEL)


def _sentencepiece(kind: SentencePieceKind) -> dict[str, Any]:
    """Pieces with SentencePiece's order of merges: by the piece that they make, all of its splits together."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=N_VOCAB - 500, show_progress=False))
    ranked = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    letters = [token for token in ranked if len(token) == 1 and token != "▁"]
    pieces = [token for token in ranked if len(token) > 1]
    runs = ["▁" * n for n in (2, 4, 8, 16)]
    own = [token for token in kind.plain if token not in runs]
    order = [
        *kind.first,
        *own,
        *(f"<0x{b:02X}>" for b in range(256)),
        *runs,
        *(t for t in pieces if t not in runs),
        *letters,
        "▁",
        "\n",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(order))}
    made = [*(t for t in kind.plain if set(t) in ({"▁"}, {"\n"})), *runs, *pieces]
    merges = [
        (token[:i], token[i:])
        for token in dict.fromkeys(made)
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    flags = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    tokens = [
        *(_added(vocab[token], token, special=True) for token in kind.first),
        *(_added(vocab[token], token, special=False) for token in kind.plain),
        *(_added(len(vocab) + i, token, special=True, rstrip=True) for i, token in enumerate(kind.strips)),
    ]
    bos = str(kind.options["bos_token"])
    model = {"type": "BPE", "vocab": vocab, "merges": merges, **flags}
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoder = {"type": "Sequence", "decoders": steps}
    return _file(model, kind.normalizer, kind.pre_tokenizer, tokens, _begins_with(bos, vocab[bos]), decoder)


def _file(
    model: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    added: list[dict[str, Any]] | None = None,
    post_processor: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added or [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def write_tokenizer(name: str, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a kind, as its family's repositories have them."""
    if name in BYTE_LEVEL_KINDS:
        kind = BYTE_LEVEL_KINDS[name]
        spec = _byte_level(kind)
        options: Mapping[str, Any] = {"eos_token": kind.eos, **({"bos_token": kind.bos} if kind.bos else {})}
    else:
        spec, options = _sentencepiece(SENTENCEPIECE_KINDS[name]), SENTENCEPIECE_KINDS[name].options
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
