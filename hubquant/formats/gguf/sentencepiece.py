"""SentencePiece's BPE as llama.cpp runs it ("llama"): no merges but a score per token, and a rule about spaces."""

import json

from hubquant.errors import BadModel
from hubquant.formats.gguf.metadata import Value
from hubquant.formats.gguf.tokenizerfiles import TokenizerFiles

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "▁"


def sentencepiece_values(files: TokenizerFiles, n_vocab: int) -> dict[str, Value]:
    """tokenizer.ggml.* of a BPE with byte_fallback, without tokens and types.

    llama.cpp merges the pair whose result has the highest score, the leftmost of equals. Scores by rank of the merge do the
    same as the merges if each result's merges stand together and every pair that makes a token is among them; BadModel if
    not.
    """
    vocab = files.model["vocab"]
    if missing := [token for token in BYTE_TOKENS if token not in vocab]:
        raise BadModel(f"tokenizer.json: byte_fallback without the token {missing[0]}, which llama.cpp needs")
    rank: dict[str, int] = {}
    pairs = set(files.merges)
    before = None
    for left, right in files.merges:
        if left + right != before and left + right in rank:
            raise BadModel(
                f"tokenizer.json: the merges that make {left + right!r} are not together; this is not SentencePiece's order"
            )
        before = left + right
        rank.setdefault(before, len(rank))
    matched_whole = {token["content"] for token in files.added if not is_made_by_merges(token, files)}
    for token in set(vocab) - matched_whole - set(BYTE_TOKENS):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        if absent := next((s for s in splits if s not in pairs and s[0] in vocab and s[1] in vocab), None):
            raise BadModel(f"tokenizer.json: {absent} makes a token but is no merge; llama.cpp would merge it")
    scores = [-float(len(rank))] * n_vocab
    for token, token_id in vocab.items():
        if token in rank and token_id < n_vocab:
            scores[token_id] = -float(rank[token])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _adds_space(files),
    }


def is_made_by_merges(token: dict[str, object], files: TokenizerFiles) -> bool:
    """Whether an added token stands in no text as it is written: a run of ▁ that is looked for before spaces become ▁, as
    Gemma has them. Spaces reach it through merges alone, where llama.cpp would match the longest run first."""
    text = str(token["content"])
    return SPACE in text and not token.get("special") and not token.get("normalized", True) and text in files.model["vocab"]


def _adds_space(files: TokenizerFiles) -> bool:
    """Whether text gets a space in front. Raises BadModel if spaces are treated in a way that llama.cpp does not know."""
    normalizer, before = files.spec.get("normalizer"), files.spec.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepends = any(step == {"type": "Prepend", "prepend": SPACE} for step in steps)
    replaces = any(step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE for step in steps)
    if len(steps) == prepends + replaces:
        if replaces and (before is None or _splits_at_spaces(before)):
            return prepends
        if (
            before is not None
            and before["type"] == "Metaspace"
            and before["replacement"] == SPACE
            and not before.get("split", True)
        ):
            return prepends or before.get("prepend_scheme", "always") != "never"
    found = f"normalizer {json.dumps(normalizer)[:200]} with pre-tokenizer {json.dumps(before)[:200]}"
    raise BadModel(f"tokenizer.json: {found} is not SentencePiece's way with spaces, the only one llama.cpp has here")


def _splits_at_spaces(step: dict[str, object]) -> bool:
    """Gemma's pre-tokenizer, which has nothing to split once every space is a ▁."""
    return step["type"] == "Split" and step["pattern"] == {"String": " "}
