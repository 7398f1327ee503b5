"""Who writes a variant, and what is asked where nobody can."""

import json
import shutil
from pathlib import Path

import pytest

from hubquant.base import open_base
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.recipe import Recipe
from hubquant.writers import writers_of_folder


def test_a_converter_that_declines_is_asked_once(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, llama_cpp, out = tmp_path / "model", tmp_path / "llama.cpp", tmp_path / "out"
    shutil.copytree(bundled, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}))
    llama_cpp.mkdir()
    script = "import sys; open(sys.argv[0] + '.calls', 'a').write('called\\n'); sys.exit('no Gemma here')"
    (llama_cpp / "convert_hf_to_gguf.py").write_text(script)
    monkeypatch.setenv("HUBQUANT_LLAMA_CPP", str(llama_cpp))
    recipe = Recipe(variants=("gguf-q8_0", "gguf-q4_k_m", "awq-int4-g128"))
    writers, notes = writers_of_folder(open_base(model).decoder(), model, out, recipe, fingerprint_folder(model), "")
    assert [writer.variant.name for writer in writers] == ["awq-int4-g128"]
    for name, note in zip(recipe.variants, notes, strict=False):
        assert note.startswith(f"{name} not made: architecture GemmaForCausalLM")
        assert note.endswith("llama.cpp's converter declined it too: no Gemma here")
    assert (llama_cpp / "convert_hf_to_gguf.py.calls").read_text() == "called\n"
