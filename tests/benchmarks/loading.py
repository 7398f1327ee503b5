"""The README's table of what from_pretrained loads. HUBQUANT_KEEP_LOADING=1 pytest tests/integrations writes its results."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "loading" / "cpu.json"
ROWS = (  # format, made by, the checkpoints
    ("GPTQ 4 bit", "hubquant", r"hubquant-gptq"),
    ("GPTQ 2, 3, 4, 8 bit; version 1 and 2; asymmetric; act order; per channel", "GPTQModel 7.7.0", r"gptqmodel-\dbit-.*"),
    ("GPTQ with `dynamic` and a packed head", "GPTQModel 7.7.0", r"gptqmodel-dynamic-head"),
    ("GPTQ, mixture of experts", "GPTQModel 7.7.0", r"gptqmodel-moe"),
    ("GPTQ", "auto-round 0.16.1", r"auto-round-(gptq.*|own)"),
    ("AWQ", "hubquant", r"hubquant-awq"),
    ("AWQ GEMM", "GPTQModel 7.7.0", r"gptqmodel-awq"),
    ("AWQ GEMV and GEMV fast", "GPTQModel 7.7.0's packer", r"gptqmodel-awq-gemv.*"),
    ("AWQ, dense and mixture of experts", "auto-round 0.16.1", r"auto-round-awq.*"),
    ("GPTQ and AWQ, experts of five families", "random codes", r"experts-.*"),
    ("GGUF kept packed (lfm2, qwen35, qwen35moe)", "the packages gguf and libgguf", r"gguf-.*"),
)
ON_A_GPU = {r"gguf-.*": "H100: lfm2, qwen35moe"}  # by the checkpoints; the others' layers have run on one, the models have not
CHECKS = {  # a check, and how the table says it
    "generated": "generate", "saved": "save", "compiled": "compile", "adapter": "LoRA", "device_map": "device map",
    "interpreted": "Triton's interpreter",
}  # fmt: skip


def rows() -> list[list[str]]:
    """One per row of ROWS: format, made by, checkpoints, worst difference, what else was run, GPUs."""
    kept = json.loads(RESULTS.read_text())["checkpoints"]
    found = []
    for kind, origin, pattern in ROWS:
        results = [result for name, result in kept.items() if re.fullmatch(pattern, name)]
        if not results:
            raise SystemExit(f"{RESULTS.name} has nothing of {pattern}; run the tests again")
        worst = max(r["logits"] for r in results)
        ran = [text for check, text in CHECKS.items() if any(check in r for r in results)]
        found.append(
            [kind, origin, str(len(results)), f"{100 * worst:.2g} %", ", ".join(ran) or "—", ON_A_GPU.get(pattern, "not run")]
        )
    return found


def note() -> str:
    versions = json.loads(RESULTS.read_text())["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        "Difference: the largest of any logit from the maker's own (GPTQModel and auto-round compute in float16; for hubquant's, "
        "random and GGUF files from the decoded weights), by the logits' standard deviation. The GGUF rows let CPU tensors through "
        f"to the GPU path; on the H100 their logits are within 1e-4 of them (make test-kernels-gpu). {named}."
    )
