from hubquant import __version__
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.metadata import Provenance, general
from hubquant.formats.gguf.mixtures import MIXTURES


def test_general_says_where_the_file_comes_from() -> None:
    provenance = Provenance(
        name="Llama-3.2-1B-Instruct",
        repo_id="meta-llama/Llama-3.2-1B-Instruct",
        revision="a" * 40,
        license="llama3.2",
        tags=("facebook",),
        languages=("en", "de"),
        quantized_by="someone",
    )
    found = general(provenance, MIXTURES["Q4_K_M"], ImatrixInfo("imatrix.gguf", "prose", 64), 1235814400, 112)
    assert found == {
        "general.type": "model",
        "general.name": "Llama-3.2-1B-Instruct",
        "general.basename": "Llama-3.2",
        "general.finetune": "Instruct",
        "general.size_label": "1B",
        "general.quantized_by": "someone",
        "general.license": "llama3.2",
        "general.source.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct",
        "general.source.huggingface.repository": "meta-llama/Llama-3.2-1B-Instruct",
        "general.tags": ["facebook"],
        "general.languages": ["en", "de"],
        "general.file_type": 15,
        "general.quantization_version": 2,
        "general.base_model.count": 1,
        "general.base_model.0.name": "Llama-3.2-1B-Instruct",
        "general.base_model.0.organization": "meta-llama",
        "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct",
        "hubquant.version": __version__,
        "hubquant.source_sha": "a" * 40,
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "prose",
        "quantize.imatrix.entries_count": 112,
        "quantize.imatrix.chunks_count": 64,
    }


def test_a_folder_has_no_base_and_no_address() -> None:
    found = general(Provenance(name="my-model"), MIXTURES["Q8_0"], None, 3_000_000, 0)
    assert found["general.name"] == "my-model"
    assert found["general.size_label"] == "3.0M"
    assert not any(key.startswith(("general.base_model", "general.source", "quantize.")) for key in found)
