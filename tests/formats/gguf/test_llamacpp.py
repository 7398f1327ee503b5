"""llama.cpp itself reads our files: the same tokens, the same logits, the same perplexity."""

import json
import unicodedata
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel

from hubquant.formats.gguf.pretokenizer import PRE_TOKENIZERS
from hubquant.formats.gguf.reader import GgufSource
from tests.formats.gguf.llamacpp import decoded, llama_cpp, load, logits, mean_kl, perplexity, torch_logits

pytestmark = pytest.mark.llamacpp

WINDOW = 512
N_WINDOWS = 8
STRINGS = (
    "Hello, world!",
    "It was a dark and stormy night;  the rain fell in torrents -- except at occasional intervals.",
    "  leading and trailing   spaces  ",
    "tabs\tand\nnew lines\n\n\nand\r\ncarriage returns\r\n",
    "I'll they've don't IT'S we'Re 'tis \u2019tis",
    "1234567890 3.14159 12a34 ½ ² ٣٤٥",
    "naïve café Ünïcödé Größe",
    "Привет мир, 你好世界, こんにちは, 안녕하세요, שלום, مرحبا, हिन्दी में",
    "emoji 🚀🦙 👨‍👩‍👧‍👦 e\u0301 \u200d\ufeff",
    "def f(x):\n    return {x: [x**2 for _ in range(10)]}  # code\n",
    "\u00a0non\u2003breaking\u3000spaces\u2028",
    "a" * 60 + "!" * 30 + " " * 40 + ".",
    "!?()[]{}<>|\\/@#$%^&*_+-=~`'\"",
    "",
)


@pytest.fixture(scope="module")
def windows(demo_folder: Path) -> list[list[int]]:
    text = (files("hubquant") / "texts" / "prose-eval.txt").read_text()
    ids = Tokenizer.from_file(str(demo_folder / "tokenizer.json")).encode(text[:120_000]).ids
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(N_WINDOWS)]


@pytest.fixture(scope="module")
def skeleton(demo_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("mixture", ["F32", "F16", "BF16"])
def test_unquantized_files_give_the_logits_of_transformers(
    mixture: str, demo_gguf: Callable[[str], Path], skeleton: PreTrainedModel, windows: list[list[int]]
) -> None:
    model = load(demo_gguf(mixture), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True)
    assert np.mean([mean_kl(torch_logits(skeleton, w), logits(model, w)) for w in windows[:3]]) < 1e-4


@pytest.mark.parametrize("mixture", ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q5_0", "Q4_0"])
def test_perplexity_is_that_of_our_own_evaluation(
    mixture: str, demo_folder: Path, demo_gguf: Callable[[str], Path], windows: list[list[int]]
) -> None:
    path = demo_gguf(mixture)
    model = load(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True)
    bos = model.token_bos() if llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model.model)) else None
    published = decoded(demo_folder, path)
    theirs = perplexity(lambda tokens: logits(model, tokens), windows, bos)
    ours = perplexity(lambda tokens: torch_logits(published, tokens), windows, bos)
    print(f"{mixture}: llama.cpp {theirs:.4f}, ours {ours:.4f}, ratio {theirs / ours:.5f}")
    assert theirs == pytest.approx(ours, rel=0.005)


def test_it_generates_text(demo_gguf: Callable[[str], Path]) -> None:
    model = load(demo_gguf("Q4_K_M"), n_ctx=128)
    answer = model("It was a", max_tokens=12, temperature=0.0)["choices"][0]["text"]
    assert len(answer.split()) > 4


def test_tokens_are_those_of_the_tokenizer(demo_folder: Path, demo_gguf: Callable[[str], Path]) -> None:
    model = load(demo_gguf("F16"), vocab_only=True)
    reference = Tokenizer.from_file(str(demo_folder / "tokenizer.json"))
    for text in STRINGS:
        assert model.tokenize(text.encode(), add_bos=True, special=False) == reference.encode(text).ids, text
    assert model.tokenize(b"a<|endoftext|>b", add_bos=False, special=True) == reference.encode("a<|endoftext|>b").ids


def _steps(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level_folder(base: Path, folder: Path, patterns: tuple[str, ...], ignore_merges: bool) -> Tokenizer:
    """A checkpoint folder like `base` with a byte-level tokenizer of 2048 tokens trained with these splits."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = _steps(patterns)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prose = (files("hubquant") / "texts" / "prose-calib.txt").read_text()[:200_000]
    tokenizer.train_from_iterator([prose, *STRINGS * 20], trainer)
    _copy_with_tokenizer(base, folder, tokenizer)
    return tokenizer


def _copy_with_tokenizer(base: Path, folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).symlink_to(base / file)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


@pytest.mark.parametrize(
    ("patterns", "ignore_merges", "name"),
    [(patterns, whole, name) for patterns, names in PRE_TOKENIZERS.items() for whole, name in enumerate(names) if name],
)
def test_every_pre_tokenizer_splits_as_llama_cpp_does(
    patterns: tuple[str, ...],
    ignore_merges: int,
    name: str,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    reference = _byte_level_folder(random_model("llama"), tmp_path / name, patterns, bool(ignore_merges))
    path = write_gguf(tmp_path / "m.gguf", "F32", tmp_path / name)
    assert GgufSource(path).header.values["tokenizer.ggml.pre"] == name
    model = load(path, vocab_only=True)
    prose = (files("hubquant") / "texts" / "prose-eval.txt").read_text()[:20_000]
    for text in (*STRINGS, prose):
        # llama.cpp's versions of these two leave combining marks out of words
        if name in ("tekken", "gpt-4o") and any(unicodedata.category(c).startswith("M") for c in text):
            continue
        assert model.tokenize(text.encode(), add_bos=False, special=False) == reference.encode(text).ids, text


@pytest.mark.parametrize("prepends", [True, False])
def test_sentencepiece_tokens_are_those_of_the_tokenizer(
    prepends: bool,
    random_model: Callable[[str], Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(
        [(files("hubquant") / "texts" / "prose-calib.txt").read_text()[:200_000]],
        trainers.BpeTrainer(vocab_size=1700, show_progress=False),
    )
    specials = ["<unk>", "<s>", "</s>"]
    learned = sorted((token for token in trained.get_vocab() if token != "▁"), key=lambda t: (len(t) == 1, trained.get_vocab()[t]))
    vocab = {token: i for i, token in enumerate([*specials, *(f"<0x{b:02X}>" for b in range(256)), *learned, "▁"])}
    merges = [
        (token[:i], token[i:]) for token in learned for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(specials)
    folder = tmp_path / "model"
    _copy_with_tokenizer(random_model("llama"), folder, tokenizer)
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    model = load(write_gguf(tmp_path / "m.gguf", "F32", folder), vocab_only=True)
    prose = (files("hubquant") / "texts" / "prose-eval.txt").read_text()[:20_000]
    for text in (*STRINGS[:-1], prose):
        expected = [1, *tokenizer.encode(text).ids]
        assert model.tokenize(text.encode(), add_bos=True, special=False) == expected, text
