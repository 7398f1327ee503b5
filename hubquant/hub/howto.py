"""The commands of a card's "Run it": one block per program that reads the repo's format."""

import json
from dataclasses import dataclass

from hubquant.artifact import Report
from hubquant.recipe import Variant


@dataclass(frozen=True)
class Part:
    title: str
    language: str  # of the code block
    text: str


RECOMMENDED = "Q4_K_M"  # what llama.cpp and Ollama take when none is named

# Families of which transformers' own GGUF loader makes the same model (README, "GGUF in llama.cpp"); of others it makes none or
# another one.
READ_BY_TRANSFORMERS = frozenset({"falcon", "gemma2", "gemma3", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "starcoder2"})


def usual(report: Report, variants: list[Variant]) -> Variant:
    """The one to take if in doubt: llama.cpp's default, else the smallest of 4 bits or more, else the largest."""
    by_size = sorted(variants, key=lambda variant: report.artifact(variant.name).size_bytes)
    default = [variant for variant in variants if variant.mixture == RECOMMENDED]
    return [*default, *(variant for variant in by_size if variant.bits >= 4), by_size[-1]][0]


def run_parts(report: Report, variants: list[Variant], repo_id: str) -> list[Part]:
    """How to run what the repo holds: GGUF files, or one AWQ or GPTQ model."""
    gguf = [variant for variant in variants if variant.format == "gguf"]
    if gguf:
        return _gguf_parts(report, gguf, repo_id)
    return [_transformers(repo_id), Part("vLLM", "sh", f"vllm serve {repo_id}")]


def _transformers(repo_id: str) -> Part:
    name = json.dumps(repo_id)
    return Part(
        "transformers, with hubquant installed (it brings the kernels; neither gptqmodel nor autoawq is needed)",
        "python",
        "import hubquant\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name})\n"
        f"model = AutoModelForCausalLM.from_pretrained({name})\n"
        'inputs = tokenizer("It was", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))",
    )


def _gguf_parts(report: Report, variants: list[Variant], repo_id: str) -> list[Part]:
    taken = usual(report, variants)
    main_file = report.artifact(taken.name).main_file
    # The Hub, which answers Ollama, knows llama.cpp's own names only; every file it knows by its name.
    tag = main_file if taken.by_sensitivity else taken.mixture
    name, file = json.dumps(repo_id), json.dumps(main_file)
    of_llama_cpp = f"{repo_id} -hff {main_file}" if taken.by_sensitivity else f"{repo_id}:{taken.mixture}"
    parts = [
        Part("llama.cpp", "sh", f"llama-cli -hf {of_llama_cpp}"),
        Part("Ollama", "sh", f"ollama run hf.co/{repo_id}:{tag}"),
    ]
    if family(report.base.architecture) in READ_BY_TRANSFORMERS:
        parts.append(
            Part(
                "transformers",
                "python",
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f"tokenizer = AutoTokenizer.from_pretrained({name}, gguf_file={file})\n"
                f"model = AutoModelForCausalLM.from_pretrained({name}, gguf_file={file})",
            )
        )
    return parts


def family(architecture: str) -> str:
    """llama of LlamaForCausalLM, or of a GGUF file's own word."""
    return architecture.lower().removesuffix("forcausallm").removesuffix("lmheadmodel")
