"""llama.cpp's converter as the way out for families that hubquant cannot write."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.errors import BadModel
from hubquant.formats.gguf.converter import convert, converter
from hubquant.formats.gguf.header import GgufHeader


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBQUANT_LLAMA_CPP", raising=False)
    assert converter() is None


def test_a_folder_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUBQUANT_LLAMA_CPP", str(tmp_path))
    with pytest.raises(BadModel, match=r"there is no convert_hf_to_gguf\.py; name the folder of llama\.cpp's source"):
        converter()


def test_its_last_words_are_the_reason(tmp_path: Path) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys; sys.exit('Model Unheard-of is not supported')")
    script.chmod(stat.S_IRUSR)
    with pytest.raises(BadModel, match="declined it too: Model Unheard-of is not supported"):
        convert(tmp_path, tmp_path / "out" / "m.gguf", script)


@pytest.mark.llamacpp
@pytest.mark.skipif("HUBQUANT_LLAMA_CPP" not in os.environ, reason="HUBQUANT_LLAMA_CPP names no llama.cpp")
def test_a_family_of_the_converter_is_quantized(tmp_path: Path) -> None:
    """Arcee has no row among the families. Its GGUF file comes from the converter, types and importance from the pass."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from hubquant import pipeline
    from hubquant.calibrate.source import read_text, with_texts
    from hubquant.hub.snapshot import fingerprint_folder
    from hubquant.progress import silent
    from hubquant.recipe import Calibration, EvaluationPlan, Recipe
    from tests.formats.gguf.llamacpp import load

    model, out = tmp_path / "arcee", tmp_path / "out"
    model.mkdir()
    text = tmp_path / "text.txt"
    text.write_text(read_text("prose-calib"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(model / "tokenizer"), vocab_size=512, model_type="bpe", byte_fallback=True,
        max_sentence_length=20000, input_sentence_size=2000, shuffle_input_sentence=False, minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "arcee", vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}))

    recipe = Recipe(
        variants=("gguf-q4_k_m", "gguf-iq2_m", "gptq-int4-g128"),
        calibration=Calibration(windows=2),
        evaluation=EvaluationPlan(max_tokens=1024),
    )
    pipeline.quantize(model, out, with_texts(recipe), fingerprint_folder(model), silent)
    report = pipeline.evaluate(out, model, silent)
    assert [a.variant for a in report.artifacts] == ["gguf-q4_k_m", "gguf-iq2_m", "gptq-int4-g128"]
    assert [e.variant for e in report.evaluations] == ["gptq-int4-g128"]
    assert any("gguf-q4_k_m not measured: GGUF architecture 'arcee' cannot be read" in note for note in report.notes)
    assert not report.passed("gguf-q4_k_m")  # so it is not published
    assert sorted(p.name for p in (out / "gguf").iterdir()) == ["arcee-IQ2_M.gguf", "arcee-Q4_K_M.gguf", "imatrix.gguf"]
    header = GgufHeader.read(out / "gguf" / "arcee-Q4_K_M.gguf")
    assert header.tensors["blk.0.attn_q.weight"].kind.name == "Q4_K"
    assert header.values["quantize.imatrix.entries_count"] == 12  # q k v o up down of two layers
    assert header.values["general.name"] == "arcee"
    llama = load(out / "gguf" / "arcee-Q4_K_M.gguf", n_ctx=64)
    assert llama.create_completion("The", max_tokens=2)["choices"]
