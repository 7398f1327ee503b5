"""llama.cpp tokenizes 200 strings as the Hugging Face tokenizer does, special tokens parsed, for every kind of tokenizer."""

import unicodedata
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from hubquant.formats.gguf.file import add_value
from hubquant.formats.gguf.tokenizer import tokenizer_values
from tests.formats.gguf.familyresults import FamilyResults
from tests.formats.gguf.strings import STRINGS
from tests.formats.gguf.tokenizerkinds import BYTE_LEVEL_KINDS, SENTENCEPIECE_KINDS, write_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python; run make test-gguf")
pytestmark = pytest.mark.llamacpp

# kind → the families whose models come with it
KINDS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*BYTE_LEVEL_KINDS, *SENTENCEPIECE_KINDS)},
    "starcoder2": ("starcoder2", "granite"),
    "llama2": ("llama", "mistral", "mixtral"),
    "llama3": ("llama",),
    "mistral": ("mistral",),  # its later versions
    "mistral-tekken": ("mistral",),
    "qwen3": ("qwen2", "qwen3", "qwen3moe"),
    "qwen3.5": (),
    "seed-coder": (),
    "granite-embedding": (),
    "gemma": ("gemma2", "gemma3"),
    "deepseek-llm": ("deepseek2",),
    "deepseek-coder": ("deepseek2",),
    "deepseek-v3": ("deepseek3",),
}


def _decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(c).startswith("M") for c in text)


def _begins_with_space_or_follows_special(text: str) -> bool:
    return text[0] in " ▁" or any(special in text for special in SENTENCEPIECE_KINDS["mistral"].first)


# What llama.cpp itself does otherwise: the only strings that may differ, and how many of them do.
NO_NFC = (_decomposed, 7)  # llama.cpp has no Unicode normalization for BPE: it takes text as it comes
DIFFERENCES: dict[str, tuple[Callable[[str], bool], int]] = {
    "gptneox": NO_NFC,
    "cohere2": NO_NFC,
    # Qwen's vocabulary has a </s> that its merges never build; llama.cpp looks for it in the text, whatever its type
    "qwen3": (lambda text: _decomposed(text) or "</s>" in text, 7 + 5),
    "qwen3.5": NO_NFC,
    # std::regex knows no \p{Lu}: llama.cpp's stand-in for upper and lower case takes letters only, a mark ends the word
    "mistral-tekken": (_has_marks, 14),
    "gpt-oss": (_has_marks, 12),
    # llama.cpp keeps runs of digits together here; it shows where byte merges join digits of three bytes each
    "deepseek-llm": (lambda text: "०१" in text, 1),
    # tokenizers' Metaspace "first" puts ▁ neither before a space nor behind a special token; llama.cpp does, as SentencePiece
    "mistral": (_begins_with_space_or_follows_special, 26),
    # tokenizers finds the added token ▁▁ in text that holds these blocks instead of spaces, before it merges anything
    "gemma": (lambda text: " ▁▁ " in text, 1),
}


def _vocabulary(kind: str, folder: Path) -> Any:
    """A llama_cpp.Llama of a file that holds nothing but the tokenizer."""
    n_vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() + 3  # as embeddings have rows to spare
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    # by this name, and no other key, llama.cpp knows that Phi-3's special tokens swallow the spaces behind them
    writer.add_name("Phi-3-tiny" if kind == "phi3" else "tiny")
    for key, value in tokenizer_values(folder, {}, n_vocab).items():
        add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_tokenizer(kind: str, tmp_path: Path, family_result: FamilyResults) -> None:
    write_tokenizer(kind, tmp_path)
    model = _vocabulary(kind, tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    may_differ, n_differing = DIFFERENCES.get(kind, (lambda text: False, 0))
    differing = [t for t in STRINGS if model.tokenize(t.encode(), add_bos=True, special=True) != reference.encode(t).ids]
    same = f"{len(STRINGS) - len(differing)} of {len(STRINGS)}"
    print(f"{kind}: {same} strings")
    prose = (files("hubquant") / "texts" / "prose-eval.txt").read_text()[:20_000]
    assert model.tokenize(prose.encode(), add_bos=True, special=True) == reference.encode(prose).ids
    for family in KINDS[kind]:
        family_result(family, tokenizer=same)
    assert [text for text in differing if not may_differ(text)] == []
    assert len(differing) == n_differing


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_the_same(kind: str, tmp_path: Path) -> None:
    write_tokenizer(kind, tmp_path)
    model = _vocabulary(kind, tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    begins = reference.encode("").ids
    assert model.tokenize(b"", add_bos=True, special=True) == begins
    eos = BYTE_LEVEL_KINDS[kind].eos if kind in BYTE_LEVEL_KINDS else SENTENCEPIECE_KINDS[kind].options["eos_token"]
    assert model.token_eos() == reference.token_to_id(str(eos))
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    assert llama_cpp.llama_vocab_is_eog(vocabulary, model.token_eos())
